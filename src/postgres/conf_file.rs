//! Reads files in the form of `postgresql.conf`, with what they include.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// PostgreSQL's own limit for files that include each other.
const DEPTH_MAX: u32 = 10;

/// A file of settings with everything that it includes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfFile {
    /// What is set, the last word on each name; names in lower case.
    pub settings: BTreeMap<String, String>,
    /// The lines of all files in one, includes replaced by what they name.
    pub text: String,
    /// The files read, the first one first.
    pub files: Vec<PathBuf>,
}

impl ConfFile {
    /// Reads `path`. Fails where it, or a file that must be there, cannot be read, or files include each other for ever.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        found.take(path, 0)?;
        Ok(found)
    }

    fn take(&mut self, path: &Path, depth: u32) -> io::Result<()> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        if depth > DEPTH_MAX {
            return Err(named(io::Error::other("files include each other without end")));
        }
        // a comment in an old encoding is no reason to fail
        let text = String::from_utf8_lossy(&fs::read(path).map_err(named)?).into_owned();
        self.files.push(path.to_owned());
        let beside = |name: &str| path.parent().unwrap_or(Path::new("/")).join(name);
        for line in text.lines() {
            match parse_line(line) {
                Some((name, value)) if name == "include" => self.take(&beside(&value), depth + 1)?,
                Some((name, value)) if name == "include_if_exists" => {
                    if beside(&value).exists() {
                        self.take(&beside(&value), depth + 1)?;
                    }
                }
                Some((name, value)) if name == "include_dir" => {
                    let folder = beside(&value);
                    let entries = fs::read_dir(&folder).map_err(named)?.flatten().map(|entry| entry.path());
                    let mut files: Vec<PathBuf> = entries.filter(|path| is_conf(path)).collect();
                    files.sort();
                    for file in files {
                        self.take(&file, depth + 1)?;
                    }
                }
                parsed => {
                    self.settings.extend(parsed);
                    self.text.push_str(line);
                    self.text.push('\n');
                }
            }
        }
        Ok(())
    }
}

fn is_conf(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.ends_with(".conf") && !name.starts_with('.') && path.is_file()
}

/// Returns what is set by a text that includes nothing.
pub fn settings(text: &str) -> BTreeMap<String, String> {
    text.lines().filter_map(parse_line).collect()
}

/// Reads `name = value # comment`: the equals sign may be left out, the value may be quoted.
fn parse_line(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let length = line.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.' | '$')).unwrap_or(line.len());
    let (name, rest) = line.split_at(length);
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquote(quoted),
        None => rest.split(|c: char| c.is_whitespace() || c == '#').next().unwrap_or_default().to_owned(),
    };
    Some((name.to_ascii_lowercase(), value))
}

/// Reads up to the closing quote: a doubled quote is one, a backslash takes the next character as it is or as C does.
fn unquote(text: &str) -> String {
    let mut value = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' if chars.next_if_eq(&'\'').is_some() => value.push('\''),
            '\'' => break,
            '\\' => match chars.next() {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some('r') => value.push('\r'),
                Some(other) => value.push(other),
                None => break,
            },
            other => value.push(other),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_postgresql_reads_them() {
        let said = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        for (line, expected) in [
            ("port = 5433 # a comment", said("port", "5433")),
            ("Work_Mem '4 MB'", said("work_mem", "4 MB")),
            ("archive_command='cp ''%p'' /a/%f'#x", said("archive_command", "cp '%p' /a/%f")),
            ("fsync=off", said("fsync", "off")),
            ("plpgsql.variable_conflict error", said("plpgsql.variable_conflict", "error")),
            ("empty = ''", said("empty", "")),
            ("# port = 1", None),
            ("", None),
        ] {
            assert_eq!(parse_line(line), expected, "{line}");
        }
    }

    #[test]
    fn included_files_count_in_their_order_and_the_last_word_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("conf.d")).unwrap();
        fs::write(path("conf.d/20.conf"), "work_mem = '2MB'\n").unwrap();
        fs::write(path("conf.d/10.conf"), "work_mem = '1MB'\nport = 1\n").unwrap();
        fs::write(path("conf.d/30.bak"), "port = 9\n").unwrap();
        fs::write(path("main.conf"), "port = 3\ninclude_dir = 'conf.d'\ninclude_if_exists 'none'\nx.y = 1\n").unwrap();
        let read = ConfFile::read(&path("main.conf")).unwrap();
        let of = |name: &str| read.settings[name].clone();
        assert_eq!((of("port"), of("work_mem"), of("x.y")), ("1".to_owned(), "2MB".to_owned(), "1".to_owned()));
        assert_eq!(settings(&read.text), read.settings, "one file says the same");
        fs::write(path("loop.conf"), "include 'loop.conf'\n").unwrap();
        assert!(ConfFile::read(&path("loop.conf")).unwrap_err().to_string().contains("without end"));
        fs::write(path("gap.conf"), "include 'none'\n").unwrap();
        assert!(ConfFile::read(&path("gap.conf")).is_err());
    }
}
