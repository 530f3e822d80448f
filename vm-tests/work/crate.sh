# A crate with a few modules, and one beside it that it needs.
mkdir -p crate/src crate/shapes/src
cd crate
printf '[package]\nname = "program"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\nshapes = { path = "shapes" }\n' >Cargo.toml
printf '[package]\nname = "shapes"\nversion = "0.1.0"\nedition = "2021"\n' >shapes/Cargo.toml
for shape in circle square oval prism cone cube; do
	cat >shapes/src/$shape.rs <<-INNER
	use std::collections::BTreeMap;
	#[derive(Clone, Debug, Default, PartialEq)]
	pub struct Shape { pub name: String, pub sides: Vec<u32>, pub notes: BTreeMap<String, String> }
	impl Shape {
	    pub fn new(sides: &[u32]) -> Self { Self { name: "$shape".into(), sides: sides.to_vec(), notes: BTreeMap::new() } }
	    pub fn note(&mut self, key: &str, text: &str) -> &mut Self { self.notes.insert(key.into(), text.into()); self }
	    pub fn sum(&self) -> u64 { self.sides.iter().map(|&side| u64::from(side)).sum() }
	}
	INNER
	echo "pub mod $shape;" >>shapes/src/lib.rs
	printf 'mod use_%s;\n' "$shape" >>src/main.rs
	cat >src/use_$shape.rs <<-INNER
	use shapes::$shape::Shape;
	pub fn line(by: u32) -> String {
	    let mut shape = Shape::new(&[1, by, 3]);
	    shape.note("by", &by.to_string()).note("used", "yes");
	    format!("{:?} has {}", shape, shape.sum())
	}
	INNER
done
{
	echo 'fn main() {'
	for shape in circle square oval prism cone cube; do echo "    println!(\"{}\", use_$shape::line(7));"; done
	echo '}'
} >>src/main.rs
