//! How `scripts/toolchain` comes by a Rust compiler, with programs that only note how they were called.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use raft_tests::program::skip;

/// What the script needs of a machine beside what is pretended.
const TOOLS: &str = "bash sh sed awk sort head dirname cat mktemp rm mkdir chmod";

struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        for tool in TOOLS.split(' ') {
            let found = std::env::split_paths(&path).map(|folder| folder.join(tool)).find(|path| path.exists());
            symlink(found.unwrap(), folder.path().join("bin").join(tool)).unwrap();
        }
        Self(folder)
    }

    /// Makes a program that notes its arguments and then does what `body` says.
    fn has(&self, name: &str, body: &str) {
        let path = self.0.path().join("bin").join(name);
        fs::write(&path, format!("#!/bin/bash\necho {name} \"$@\" >>\"$NOTES\"\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs the script and returns how it ended and what was called.
    fn toolchain(&self) -> (Output, String) {
        let folder = self.0.path();
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/toolchain"))
            .env_clear()
            .env("PATH", folder.join("bin"))
            .env("HOME", folder)
            .env("NOTES", folder.join("notes"))
            .output()
            .unwrap();
        (output, fs::read_to_string(folder.join("notes")).unwrap_or_default())
    }

    fn prints(&self, folder: &str) -> String {
        let (output, notes) = self.toolchain();
        let told = String::from_utf8_lossy(&output.stdout);
        assert_eq!(told.trim(), self.0.path().join(folder).to_str().unwrap(), "{output:?} {notes}");
        notes
    }
}

#[test]
fn a_compiler_that_is_new_enough_is_used_and_an_old_or_missing_one_is_installed_beside() {
    let name = "a_compiler_that_is_new_enough_is_used_and_an_old_or_missing_one_is_installed_beside";
    if !rustix::process::geteuid().is_root() {
        return skip(name, "packages are installed by root alone");
    }
    let machine = Machine::new();
    machine.has("cargo", "echo 'cargo 1.200.0'");
    assert_eq!(machine.prints("bin").trim(), "cargo --version\ncargo --version");

    // Debian 13: nothing, then its rustup
    let machine = Machine::new();
    machine.has("apt-cache", "");
    let bin = machine.0.path().join("bin");
    let rustup = format!(
        "cat >{0}/rustup <<'E'\n#!/bin/bash\necho rustup \"$@\" >>\"$NOTES\"\n[[ $1 == toolchain ]]\nE\nchmod +x {0}/rustup\n\
         printf '#!/bin/bash\\necho cargo 1.200.0' >{0}/cargo\nchmod +x {0}/cargo",
        bin.display()
    );
    machine.has("apt-get", &rustup);
    let notes = machine.prints("bin");
    assert!(notes.contains("apt-get install") && notes.contains("--no-remove rustup"), "{notes}");
    assert!(notes.contains("rustup toolchain install 1.") && notes.contains("--profile minimal"), "{notes}");

    // Debian 12: its cargo is too old and it has no rustup
    let machine = Machine::new();
    machine.has("cargo", "echo 'cargo 1.65.0'");
    machine.has("apt-cache", "exit 100");
    machine.has("apt-get", "exit 100");
    let installer = "mkdir -p \"$HOME/.cargo/bin\"; printf '#!/bin/bash\\necho cargo 1.200.0' >\"$HOME/.cargo/bin/cargo\"; \
                     chmod +x \"$HOME/.cargo/bin/cargo\"; echo installer \"$@\" >>\"$NOTES\"";
    machine.has("curl", &format!("cat >\"${{@: -1}}\" <<'E'\n{installer}\nE"));
    let notes = machine.prints(".cargo/bin");
    assert!(notes.contains("https://sh.rustup.rs") && !notes.contains("apt-get"), "{notes}");
    assert!(notes.contains("installer -y --no-modify-path --profile minimal --default-toolchain 1."), "{notes}");

    // and no network
    let machine = Machine::new();
    machine.has("curl", "exit 7");
    let (output, _) = machine.toolchain();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && told.contains("cannot be reached") && told.contains("by other means"),
        "{told}"
    );
}
