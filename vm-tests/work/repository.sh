# A tree as an archive and as a repository.
tar -cf tree.tar tree
cd tree
git init -q
git add .
git -c user.name=a -c user.email=a@b commit -qm one
