//! The binary under test, and what a machine must have to run it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Returns the path of the binary under test: `HASUP_TEST_BINARY`, else the one beside this test, built if need be.
///
/// # Panics
/// When it does not build.
pub fn hasup() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("HASUP_TEST_BINARY") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let test = std::env::current_exe().expect("the kernel knows this test's path");
    let folder = test.ancestors().nth(2).expect("a test lies in PROFILE/deps").to_owned();
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let target = folder.parent().expect("a profile's folder lies in the target folder");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo tells a test about its package: build scripts of dependencies would take it for a change, and all be built anew.
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    let built = cargo
        .args(["build", "--quiet", "--locked", "-p", "hasup", "--bin", "hasup", "--profile", profile])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(target)
        .status()
        .expect("cargo runs, as it runs this test");
    assert!(built.success(), "the binary under test does not build");
    folder.join("hasup")
}

/// Returns why this machine cannot run nodes of PostgreSQL; none if it can.
pub fn lacks_postgres() -> Option<String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    if !versions.map(|version| version.path().join("bin/postgres")).any(|program| program.exists()) {
        return Some("no PostgreSQL server under /usr/lib/postgresql; apt-get install postgresql".to_owned());
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    if !users.lines().any(|line| line.starts_with("postgres:")) {
        return Some("no user `postgres`; apt-get install postgresql".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("nodes of several users need root".to_owned());
    }
    None
}

/// Returns why this machine cannot make hosts of network namespaces; none if it can.
pub fn lacks_hosts() -> Option<String> {
    for tool in ["ip", "nft", "nsenter", "unshare"] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        if !found.into_iter().any(|folder| folder.join(tool).exists()) {
            return Some(format!("no program `{tool}`; apt-get install iproute2 nftables util-linux"));
        }
    }
    let made = Command::new("unshare").args(["--net", "--mount", "true"]).output();
    match made {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("no namespaces here: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("no namespaces here: {error}")),
    }
}

/// Tells whether nodes shall find each other over IPv6: `HASUP_TEST_ADDRESSES=ipv6`.
///
/// # Panics
/// When the variable says anything else.
pub fn over_ipv6() -> bool {
    match std::env::var("HASUP_TEST_ADDRESSES").as_deref() {
        Ok("ipv6") => true,
        Ok("ipv4") | Err(_) => false,
        Ok(other) => panic!("HASUP_TEST_ADDRESSES is `{other}`; it takes ipv4 or ipv6"),
    }
}

/// Says that `test` did not run and why, past the harness's capture.
pub fn skip(test: &str, why: &str) {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// Waits until no other test of this process runs a cluster: several at once would starve each other.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
