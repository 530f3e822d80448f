//! What one operation costs, in guest instructions: bare, ungoverned with the guard loaded, and governed
//! with 10 and with 10,000 rules and a record for each action; and, for comparison, under an `AppArmor`
//! profile with 10 and with 1,000 rules, which records nothing. Not a test: it judges nothing.
//!
//! `cost tables DIR` compiles the two policies, and the two profiles where there is an
//! `apparmor_parser`; `cost run DIR`, as root in a guest whose time counts instructions
//! (`cargo xtask vm --icount`), measures what is in DIR and prints a table.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;

use agentguard::kernel::{Guard, GuardOptions, cgroup_id};
use agentguard::policy::{LoadOptions, load_text};
use agentguard_common::label::Membership;

/// Eleven bytes, two components.
const SHORT: &str = "/tmp/abcdef";
/// Sixty-three bytes, eleven components.
const LONG: &str = "/tmp/aaaaa/bbbbb/ccccc/ddddd/eeeee/fffff/ggggg/hhhhh/iiiii/jjjj";
const CGROUP: &str = "/sys/fs/cgroup/cost";
const ROUNDS: usize = 5;
/// Names and rules of the `AppArmor` profiles.
const PROFILES: [(&str, usize); 2] = [("apparmor-10", 10), ("apparmor-1000", 1000)];

/// What confines a measured process.
#[derive(Clone, Copy)]
enum Confined<'a> {
    No,
    /// It enters the governed cgroup.
    Governed,
    /// It changes to this `AppArmor` profile.
    Profile(&'a str),
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (verb, dir) = (
        args.next().unwrap_or_default(),
        args.next().unwrap_or_default(),
    );
    match verb.as_str() {
        "tables" => tables(Path::new(&dir)),
        "run" => run(Path::new(&dir)),
        _ => anyhow::bail!("usage: cost tables DIR | cost run DIR"),
    }
}

/// A policy with so many rules, of which so many match at any depth (half of those end in `/**`).
fn policy(rules: usize, floating: usize) -> String {
    let mut text = String::from(
        "version: 1\nname: cost\nexec:\n  default: allow\nnetwork:\n  default: allow\nfiles:\n  read:\n    default: deny\n    allow:\n      - \"/tmp/**\"\n      - \"/usr/**\"\n      - \"/proc/**\"\n    deny:\n",
    );
    for i in 0..floating {
        let tail = if i % 2 == 0 { "/**" } else { "" };
        let _ = writeln!(text, "      - \"**/secret-{i}-{}{tail}\"", i * 7919 % 1009);
    }
    for i in 0..rules.saturating_sub(floating + 3) {
        let _ = writeln!(
            text,
            "      - \"/srv/tenant-{}/project-{}/data-{i}/**\"",
            i % 97,
            i % 1013
        );
    }
    text
}

fn tables(dir: &Path) -> anyhow::Result<()> {
    for (name, rules, floating) in [("10", 10, 3), ("10000", 10_000, 300)] {
        let started = std::time::Instant::now();
        let policy = load_text(
            Path::new("cost.yaml"),
            &policy(rules, floating),
            &LoadOptions::default(),
        )
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let table = policy
            .compile(1)
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        println!(
            "{name} rules: {} bytes, {:?}, {:?}",
            table.bytes.len(),
            table.stats,
            started.elapsed()
        );
        fs::write(dir.join(name), &table.bytes)?;
    }
    profiles(dir)
}

/// An `AppArmor` profile with so many rules on files, which permits what is measured.
fn profile(name: &str, rules: usize) -> String {
    let permitted = [
        "/tmp/** r,",
        "/{,usr/}bin/* mrix,",
        "/{,usr/}lib{,64}/** mr,",
        "/etc/ld.so.* r,",
        "/proc/** r,",
    ];
    let mut text = format!(
        "abi <abi/3.0>,\nprofile {name} {{\n  network,\n  capability,\n  unix,\n  signal,\n"
    );
    for rule in permitted {
        let _ = writeln!(text, "  {rule}");
    }
    for i in permitted.len()..rules {
        let _ = writeln!(
            text,
            "  deny \"/srv/tenant-{}/project-{}/data-{i}/**\" rw,",
            i % 97,
            i % 1013
        );
    }
    text + "}\n"
}

/// Compiles the profiles on the build machine; the guest only loads them.
fn profiles(dir: &Path) -> anyhow::Result<()> {
    for (name, rules) in PROFILES {
        let source = dir.join(format!("{name}.profile"));
        fs::write(&source, profile(name, rules))?;
        let parser = Command::new("apparmor_parser")
            .args(["-S", "-K", "-T", "-Q", "-M", "/etc/apparmor.d/abi/3.0"])
            .arg(&source)
            .output();
        match parser {
            Ok(output) if output.status.success() => {
                println!("{name}: {} bytes", output.stdout.len());
                fs::write(dir.join(name), output.stdout)?;
            }
            Ok(output) => anyhow::bail!("{name}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => println!("{name}: left out, apparmor_parser: {error}"),
        }
    }
    Ok(())
}

/// Nanoseconds of guest time, which are instructions.
fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

fn open_close(path: &CString) {
    // SAFETY: a C string; the descriptor is closed at once.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDONLY);
        assert!(fd >= 0, "open failed");
        libc::close(fd);
    }
}

fn udp_connect() {
    // SAFETY: a live address of the length that is passed.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut address: libc::sockaddr_in = std::mem::zeroed();
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = 9u16.to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
        let ok = libc::connect(
            fd,
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        );
        assert_eq!(ok, 0, "connect failed");
        libc::close(fd);
    }
}

/// The standard library starts programs with `vfork` semantics.
fn spawn(program: &str) {
    let status = Command::new(program).env_clear().status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "the program failed"
    );
}

fn measure(times: usize, mut act: impl FnMut()) -> u64 {
    for _ in 0..times / 4 {
        act();
    }
    (0..ROUNDS)
        .map(|_| {
            let start = now();
            for _ in 0..times {
                act();
            }
            (now() - start) / times as u64
        })
        .min()
        .unwrap_or(0)
}

/// All operations, in a child that is alone on its CPU.
fn child(confined: Confined<'_>) -> [u64; 4] {
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    // SAFETY: this process has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // The guard's descriptors are its own: each of them would be copied and closed with every program
        // that is started, and counted as a cost of enforcement.
        let kept = writer.as_raw_fd().cast_unsigned();
        // SAFETY: nothing in this process uses the others.
        unsafe {
            libc::close_range(3, kept - 1, 0);
            libc::close_range(kept + 1, u32::MAX, 0);
        }
        if matches!(confined, Confined::Governed) {
            fs::write(format!("{CGROUP}/cgroup.procs"), "0").expect("enter the cgroup");
        }
        let parameter = libc::sched_param { sched_priority: 10 };
        // SAFETY: a live parameter.
        let real_time =
            unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) };
        assert_eq!(real_time, 0, "a real-time priority needs root");
        if let Confined::Profile(name) = confined {
            let command = format!("changeprofile {name}");
            fs::write("/proc/self/attr/apparmor/current", command).expect("change the profile");
        }
        let [short, long] = [SHORT, LONG].map(|path| CString::new(path).expect("no NUL"));
        let results = [
            measure(1000, || open_close(&short)),
            measure(1000, || open_close(&long)),
            measure(500, udp_connect),
            measure(40, || spawn("/bin/true")),
        ];
        let text = results.map(|r| r.to_string()).join(" ");
        std::io::Write::write_all(&mut writer, text.as_bytes()).expect("write the results");
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    drop(writer);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text).expect("read the results");
    let mut numbers = text.split(' ').map(|n| n.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

fn run(dir: &Path) -> anyhow::Result<()> {
    fs::write(SHORT, "x")?;
    fs::create_dir_all(Path::new(LONG).parent().unwrap_or(Path::new("/")))?;
    fs::write(LONG, "x")?;
    assert_eq!((SHORT.len(), LONG.len()), (11, 63));
    fs::create_dir_all(CGROUP)?;
    std::thread::sleep(std::time::Duration::from_secs(30));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let entered = runtime.enter();
    println!(
        "{:<28}{:>12}{:>12}{:>14}{:>14}",
        "instructions", "open 11 B", "open 63 B", "udp connect", "vfork+exec"
    );
    let show = |name: &str, row: [u64; 4], base: Option<[u64; 4]>| {
        let mut line = format!("{name:<28}");
        for (index, value) in row.iter().enumerate() {
            let text = base.map_or_else(
                || value.to_string(),
                |base| format!("{:+}", value.cast_signed() - base[index].cast_signed()),
            );
            let width = if index < 2 { 12 } else { 14 };
            let _ = write!(line, "{text:>width$}");
        }
        println!("{line}");
    };
    let bare = child(Confined::No);
    show("bare kernel", bare, None);
    for (name, rules) in PROFILES {
        if let Ok(compiled) = fs::read(dir.join(name)) {
            // The kernel takes a whole profile in one write.
            fs::write("/sys/kernel/security/apparmor/.replace", compiled)?;
            let row = child(Confined::Profile(name));
            show(&format!("AppArmor, {rules} rules"), row, Some(bare));
        }
    }
    let mut guard = Guard::load(&GuardOptions::default())?;
    let mut rings = guard.rings()?;
    guard.govern(
        cgroup_id(Path::new(CGROUP))?,
        Membership {
            agent: 1,
            session: 1,
        },
    )?;
    show("ungoverned, guard loaded", child(Confined::No), Some(bare));
    for name in ["10", "10000"] {
        guard.install(1, &fs::read(dir.join(name))?)?;
        let row = child(Confined::Governed);
        let mut records = 0;
        let ends = rings.ends();
        rings.take(ends, usize::MAX, |_, _| records += 1);
        rings.commit();
        show(&format!("governed, {name} rules"), row, Some(bare));
        println!("  {records} records, lost {:?}", guard.losses()?);
    }
    drop(entered);
    Ok(())
}
