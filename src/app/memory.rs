//! A node that has begun does not start without what it promised: whoever forgot a vote or a bar would give it twice.

use std::path::{Path, PathBuf};

/// What a node that has begun needs to know of its past is gone.
#[derive(Debug, thiserror::Error)]
#[error(
    "this node belongs to a cluster, and {path}, {what}, is missing. It does not start without: it could vote twice, or help \
     where it had refused to, and what was acknowledged could be lost. Nothing was changed. Put back what was moved; if it is \
     lost, run `hasup nodes remove {name}` on another member, `hasup destroy` here, and join again"
)]
pub struct ForgottenError {
    /// The file.
    path: PathBuf,
    /// What it held.
    what: &'static str,
    /// The node's name.
    name: String,
}

/// Refuses to go on where the node of `data_dir`, which has begun, has no durable facts or no Raft log any more.
pub(super) fn require(data_dir: &Path, name: &str) -> Result<(), ForgottenError> {
    let needed = [
        ("promises", "which holds what it has promised the others"),
        ("raft/log/conf", "of its Raft log"),
        ("raft/log/db", "its Raft log with its votes"),
    ];
    for (file, what) in needed {
        let path = data_dir.join(file);
        // what cannot be looked at is told by whoever opens it
        if matches!(path.try_exists(), Ok(false)) {
            return Err(ForgottenError { path, what, name: name.to_owned() });
        }
    }
    Ok(())
}
