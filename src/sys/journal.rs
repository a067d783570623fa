//! The system's journal: whether standard error leads there, and how a line says how grave it is (sd-daemon(3)).

use std::ffi::OsStr;
use std::io::stderr;
use std::sync::OnceLock;

use rustix::fs::fstat;

/// How grave a line is, as syslog counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// A person must look.
    Error = 3,
    /// Odd, but it went on.
    Warning = 4,
    /// Something changed.
    Info = 6,
    /// The rest.
    Debug = 7,
}

/// Returns whether the journal reads this process's standard error, so that a line may begin with its priority. What a service
/// redirects to a file, or into another program, is not read by the journal, although it inherits the service's environment.
pub fn reads_stderr() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let Some(said) = std::env::var_os("JOURNAL_STREAM") else { return false };
        fstat(stderr()).is_ok_and(|file| names(&said, file.st_dev, file.st_ino))
    })
}

/// Returns whether `said`, as systemd says it in `JOURNAL_STREAM`, is the file of that device and inode.
fn names(said: &OsStr, device: u64, inode: u64) -> bool {
    said == OsStr::new(&format!("{device}:{inode}"))
}

/// Returns `text` with the priority in front of each line that it has: the journal makes a record of each.
pub fn stamped(priority: Priority, text: &str) -> String {
    let stamp = format!("<{}>", priority as u8);
    text.split_inclusive('\n').flat_map(|line| [stamp.as_str(), line]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_a_message_says_its_priority() {
        assert_eq!(stamped(Priority::Warning, "a\nb\n"), "<4>a\n<4>b\n");
        assert_eq!(stamped(Priority::Error, "a"), "<3>a");
        assert_eq!(stamped(Priority::Info, ""), "");
    }

    #[test]
    fn only_the_stream_that_systemd_named_is_the_journals() {
        let says = |text: &str| names(OsStr::new(text), 9, 15_915_436);
        assert!(says("9:15915436"));
        for other in ["9:15915437", "8:15915436", "9", "", "9:15915436:1"] {
            assert!(!says(other), "{other}");
        }
    }
}
