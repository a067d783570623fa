//! Reads what the server's former life has left: its command line, who starts it, files that name others, sockets.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::DEBIAN_CONF;
use crate::postgres::conf_file::ConfFile;

/// Returns the first line of a `pg_hba.conf` or `pg_ident.conf` that takes words or lines from another file: `@file` in place of
/// names, or one of the directives that include.
pub(super) fn names_other_file(text: &str) -> Option<&str> {
    text.lines().find(|line| {
        let (mut is_quoted, mut begins_word, mut chars) = (false, true, line.chars().peekable());
        while let Some(c) = chars.next() {
            match c {
                '"' => is_quoted = !is_quoted,
                '#' if !is_quoted => break,
                '@' if begins_word && chars.peek().is_some_and(|next| !next.is_whitespace() && *next != ',') => {
                    return true;
                }
                _ => {}
            }
            begins_word = !is_quoted && (c == ',' || c.is_whitespace());
        }
        let first = line.split_whitespace().next();
        first.is_some_and(|word| ["include", "include_if_exists", "include_dir"].contains(&word))
    })
}

/// Returns the systemd service that a process belongs to.
pub(super) fn unit_of(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.rsplit('/').next().filter(|unit| unit.ends_with(".service")).map(str::to_owned)
}

/// Returns the file that tells Debian's scripts whether to start the cluster of a unit like `postgresql@15-main.service` at boot.
pub(super) fn debian_start_conf(unit: &str) -> Option<PathBuf> {
    let (major, cluster) = unit.strip_prefix("postgresql@")?.strip_suffix(".service")?.split_once('-')?;
    // systemd's way to write a dash
    Some(Path::new(DEBIAN_CONF).join(major).join(cluster.replace("\\x2d", "-")).join("start.conf"))
}

/// Tells whether root has told systemd never to start `unit`; `units` is the folder of root's own units.
pub(super) fn is_masked(units: &Path, unit: &str) -> bool {
    fs::read_link(units.join(unit)).is_ok_and(|target| target == Path::new("/dev/null"))
}

/// Returns the settings of the command line that the server was started with last.
pub(super) fn start_options(pgdata: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(pgdata.join("postmaster.opts")).unwrap_or_default();
    // program "word" "word" …
    let words: Vec<&str> = text.trim().split("\" \"").map(|word| word.trim_matches('"')).collect();
    let words: Vec<&str> = words.iter().flat_map(|word| word.split(" \"")).collect();
    let mut found = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        found.insert(name.replace('-', "_").to_ascii_lowercase(), value.to_owned());
    };
    let mut words = words.into_iter().skip(1);
    while let Some(word) = words.next() {
        if let Some(said) = word.strip_prefix("--") {
            if let Some((name, value)) = said.split_once('=') {
                set(name, value);
            }
            continue;
        }
        let Some(letters) = word.strip_prefix('-') else { continue };
        for (at, letter) in letters.char_indices() {
            match letter {
                'F' => set("fsync", "off"),
                'i' => set("listen_addresses", "*"),
                'l' => set("ssl", "on"),
                'e' => set("datestyle", "euro"),
                _ if VALUED_LETTERS.contains(letter) => {
                    // the rest of the word, or the next one
                    let rest = &letters[at + letter.len_utf8()..];
                    let value = if rest.is_empty() { words.next().unwrap_or_default() } else { rest };
                    let meant = SHORT_OPTIONS.iter().find(|(short, _)| *short == letter);
                    match (meant, value.split_once('=')) {
                        (Some((_, name)), _) => set(name, value),
                        (None, Some((name, value))) if letter == 'c' => set(name, value),
                        _ => {}
                    }
                    break;
                }
                _ => {}
            }
        }
    }
    found
}

/// Options of one letter that take a value.
const VALUED_LETTERS: &str = "BcCdDfhkNprStvW";

/// Those of them that are a setting.
const SHORT_OPTIONS: [(char, &str); 6] = [
    ('B', "shared_buffers"),
    ('h', "listen_addresses"),
    ('k', "unix_socket_directories"),
    ('N', "max_connections"),
    ('p', "port"),
    ('S', "work_mem"),
];

/// Returns the settings below Debian's folder that name `pgdata` as their data directory.
pub(super) fn debian_conf(root: &Path, major: u32, pgdata: &Path) -> Option<PathBuf> {
    let wanted = pgdata.canonicalize().ok()?;
    let clusters = fs::read_dir(root.join(major.to_string())).into_iter().flatten().flatten();
    let files = clusters.map(|cluster| cluster.path().join("postgresql.conf"));
    files.into_iter().find(|file| {
        let named = ConfFile::read(file).ok().and_then(|mut conf| conf.settings.remove("data_directory"));
        named.is_some_and(|folder| Path::new(&folder).canonicalize().is_ok_and(|folder| folder == wanted))
    })
}

/// Tells whether a server other than that of `pgdata`, which does not run, holds the socket of `port` in `folder`.
pub(super) fn is_socket_taken(folder: &Path, port: u16, pgdata: &Path) -> bool {
    let socket = folder.join(format!(".s.PGSQL.{port}"));
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        return true;
    }
    let text = match fs::read_to_string(folder.join(format!(".s.PGSQL.{port}.lock"))) {
        Ok(text) => text,
        Err(error) => return error.kind() != std::io::ErrorKind::NotFound,
    };
    let mut lines = text.lines();
    let holder = lines.next().and_then(|line| line.trim().parse::<u32>().ok());
    let is_ours = lines.next().is_some_and(|owner| Path::new(owner) == pgdata);
    !is_ours && holder.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_unit_is_masked_by_a_link_to_nowhere() {
        let units = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", units.path().join("a.service")).unwrap();
        std::os::unix::fs::symlink("/lib/b.service", units.path().join("b.service")).unwrap();
        let masked = ["a.service", "b.service", "c.service"].map(|unit| is_masked(units.path(), unit));
        assert_eq!(masked, [true, false, false]);
    }

    #[test]
    fn the_command_line_of_the_last_start_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let line = "/usr/lib/postgresql/15/bin/postgres \"-D\" \"/d/main\" \"-c\" \"config_file=/etc/x/postgresql.conf\" \
                    \"--work-mem=9MB\"\n";
        fs::write(folder.path().join("postmaster.opts"), line).unwrap();
        let expected = map(&[("config_file", "/etc/x/postgresql.conf"), ("work_mem", "9MB")]);
        assert_eq!(start_options(folder.path()), expected);
        let line = "/usr/bin/postgres \"-D\" \"/d/main\" \"-Fp\" \"5433\" \"-k/run/a\" \"-N\" \"77\" \"-ck.v=1\"\n";
        fs::write(folder.path().join("postmaster.opts"), line).unwrap();
        let expected = map(&[
            ("fsync", "off"),
            ("k.v", "1"),
            ("max_connections", "77"),
            ("port", "5433"),
            ("unix_socket_directories", "/run/a"),
        ]);
        assert_eq!(start_options(folder.path()), expected);
        fs::write(folder.path().join("postmaster.opts"), "/usr/bin/postgres\n").unwrap();
        assert_eq!(start_options(folder.path()), BTreeMap::new());
    }

    #[test]
    fn lines_about_access_that_name_another_file_are_found() {
        for line in
            ["host @dbs all all md5", "local all a,@admins peer", "include more.conf", "host all \"x\",@y all trust"]
        {
            assert_eq!(names_other_file(&format!("# @x\nlocal all all peer\n{line}\n")), Some(line));
        }
        for line in ["host all \"@x\" all md5", "host all a@b all md5 # @c", "#include x", "host all all @ md5"] {
            assert_eq!(names_other_file(line), None, "{line}");
        }
    }

    #[test]
    fn a_socket_that_another_server_has_is_left_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join(".s.PGSQL.5432.lock");
        let is_taken = || is_socket_taken(folder.path(), 5432, Path::new("/d/pgdata"));
        assert!(!is_taken());
        for (owner, pid, expected) in [
            ("/other", std::process::id(), true),
            ("/other", u32::MAX, false),
            ("/d/pgdata", std::process::id(), false),
        ] {
            fs::write(&lock, format!("{pid}\n{owner}\n1\n")).unwrap();
            assert_eq!(is_taken(), expected, "{owner} {pid}");
        }
        fs::remove_file(&lock).unwrap();
        let _listens = std::os::unix::net::UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        assert!(is_taken());
    }

    #[test]
    fn debians_units_lead_to_what_starts_them() {
        let expected = Some(PathBuf::from("/etc/postgresql/15/my-shop/start.conf"));
        assert_eq!(debian_start_conf("postgresql@15-my\\x2dshop.service"), expected);
        assert_eq!(debian_start_conf("postgresql.service"), None);
    }

    #[test]
    fn debians_settings_are_found_by_the_data_directory_they_name() {
        let folder = tempfile::tempdir().unwrap();
        let (etc, data) = (folder.path().join("etc"), folder.path().join("data"));
        fs::create_dir_all(&data).unwrap();
        for (cluster, names) in [("other", "/elsewhere".to_owned()), ("main", data.display().to_string())] {
            fs::create_dir_all(etc.join("15").join(cluster)).unwrap();
            let text = format!("data_directory = '{names}'\t\t# use data in another directory\n");
            fs::write(etc.join("15").join(cluster).join("postgresql.conf"), text).unwrap();
        }
        assert_eq!(debian_conf(&etc, 15, &data), Some(etc.join("15/main/postgresql.conf")));
        assert_eq!(debian_conf(&etc, 16, &data), None);
    }
}
