//! Reads the log that nodes put aside before they gave up a history of their own, and finds the keys of rows in it.
//!
//! Bytes alone: a row's key stands in the records of its insert as the client wrote it. The pages' headers are taken out, since a
//! record goes on behind them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context;

/// PostgreSQL's page of log, unless it was built otherwise.
const PAGE: usize = 8192;
/// Of a page's header, and of the first one's in a file.
const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;
/// Two bytes that say what kind of page it is; with this bit, its header is the long one.
const FLAGS_AT: usize = 2;
const IS_LONG: u8 = 0x02;
/// So many letters, digits and signs in a row may be a key of a writer.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 3..=64;

/// Returns every word that the log in the folders of `salvage`, which need not be there, holds and that could be a key.
///
/// # Errors
/// When something that is there cannot be read.
pub fn words(salvage: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    if !salvage.exists() {
        return Ok(found);
    }
    let listed = |path: &Path| -> anyhow::Result<Vec<_>> {
        let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut paths: Vec<_> =
            entries.with_context(|| format!("list {}", path.display()))?.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        Ok(paths)
    };
    for folder in listed(salvage)?.into_iter().filter(|path| path.is_dir()) {
        let mut log = Vec::new();
        for file in listed(&folder)?.into_iter().filter(|path| path.is_file()) {
            let is_log = file.file_name().is_some_and(|name| name.len() == 24);
            if is_log {
                let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
                bytes.chunks(PAGE).for_each(|page| log.extend_from_slice(body(page)));
            }
        }
        collect_words(&log, &mut found);
    }
    Ok(found)
}

fn body(page: &[u8]) -> &[u8] {
    let is_long = page.get(FLAGS_AT).is_some_and(|flags| flags & IS_LONG != 0);
    page.get(if is_long { LONG_HEADER } else { SHORT_HEADER }..).unwrap_or_default()
}

fn collect_words(log: &[u8], found: &mut BTreeSet<String>) {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    for word in log.split(|byte| !is_part(byte)) {
        // The length that stands before a key may look like a part of it.
        for word in [word, word.get(1..).unwrap_or_default()] {
            if KEY_BYTES.contains(&word.len()) && word.contains(&b'.') {
                found.insert(String::from_utf8_lossy(word).into_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_also_where_a_page_ends_within_it() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("salvage/one");
        fs::create_dir_all(&kept).unwrap();
        let mut log = vec![0_u8; 2 * PAGE];
        log[FLAGS_AT] = IS_LONG;
        log[100..110].copy_from_slice(b"\x11b1.n1.1.7");
        log[PAGE - 4..PAGE].copy_from_slice(b"b1.1");
        log[PAGE + SHORT_HEADER..PAGE + SHORT_HEADER + 3].copy_from_slice(b".23");
        // a length that looks like a letter
        log[PAGE + 100..PAGE + 107].copy_from_slice(b"Kb1.1.9");
        fs::write(kept.join("000000010000000000000003"), &log).unwrap();
        fs::write(kept.join("salvage.json"), b"b1.1.99").unwrap();
        let words = words(&folder.path().join("salvage")).unwrap();
        for key in ["b1.n1.1.7", "b1.1.23", "b1.1.9"] {
            assert!(words.contains(key), "{key}: {words:?}");
        }
        assert!(!words.contains("b1.1.99"), "what is no log counts for nothing");
        assert!(super::words(&folder.path().join("absent")).unwrap().is_empty());
    }
}
