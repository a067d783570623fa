//! What no compiler checks: which module may use which, what pure code keeps away from, and what no file may hold.
//!
//! Aim: a rule of the project that is broken is told by file, line and rule, so that nobody has to remember it in review.
//! Method: the sources are read as text; comments and unit tests are cut away where a rule is about shipped code alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A module of the crate's root and its level: it uses lower levels only, and neighbours on a level never meet.
struct Part {
    name: &'static str,
    level: u8,
    /// Plain data in, plain data out: no I/O, no clock, no waiting, no logging.
    is_pure: bool,
}

const fn pure(name: &'static str, level: u8) -> Part {
    Part { name, level, is_pure: true }
}

const fn edge(name: &'static str, level: u8) -> Part {
    Part { name, level, is_pure: false }
}

/// The one table of levels, from the vocabulary up to the entry.
const PARTS: &[Part] = &[
    pure("types", 0),
    pure("codec", 1),
    pure("config", 1),
    pure("ha", 1),
    // The replicated store keeps the brain's records as typed tables.
    pure("kv", 2),
    edge("sys", 2),
    edge("telemetry", 3),
    edge("tls", 3),
    edge("guard", 4),
    // Carries frames between nodes and knows no node: the node is called back through traits that `peer` defines.
    edge("peer", 4),
    edge("pulse", 4),
    edge("raft", 4),
    // Above the guard: PostgreSQL is started and stopped by nobody else.
    edge("postgres", 5),
    edge("node", 6),
    edge("http", 7),
    edge("app", 8),
    // Demonstration and harness are one part in two files: both are a cluster's operator from outside.
    edge("chaos", 9),
    edge("demo", 9),
    edge("cli", 9),
    edge("main", 10),
];

/// Neighbours that may meet, with the reason in [`PARTS`] or beside the pair.
const MAY_MEET: &[(&str, &str)] = &[("chaos", "demo"), ("demo", "chaos"), ("cli", "chaos"), ("cli", "demo")];

/// The harness judges hasup from outside: with a node's inside at hand, a defect of the node could acquit itself.
const OUTSIDERS: &[&str] = &["chaos", "demo"];
const OUTSIDERS_MAY_USE: &[&str] = &["chaos", "demo", "sys", "types"];

/// What pure code must not name. The sockets of `std::net` are banned, its addresses are plain data.
const IMPURE: &[&str] = &[
    "tokio::",
    "tracing::",
    "async fn",
    ".await",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "clock_gettime",
    "sys::",
    // Their order differs from run to run.
    "std::collections::HashMap",
    "std::collections::HashSet",
];

/// Longest file that needs no reason; a longer one says `tidy: long because …` in a comment.
const LINES_MAX: usize = 700;

/// What the top of the repository may hold beside files whose names begin with a dot.
const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "examples",
    "raft-tests",
    "scripts",
    "src",
    // Not kept in git.
    "target",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the repository")
}

/// Returns every file under `folder` of the repository whose name ends so, in order.
fn files(folder: &str, ends: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("a folder of the repository can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", ".git", "node_modules", "__pycache__"].contains(&name.as_str()) {
                    open.push(path);
                }
            } else if name != ".git" && (ends.is_empty() || ends.iter().any(|end| name.ends_with(end))) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A source file with what the rules ask about it.
struct Source {
    /// Its path from the root of the repository.
    path: String,
    text: String,
}

impl Source {
    fn read(path: &Path) -> Self {
        let text = String::from_utf8_lossy(&fs::read(path).expect("a file of the repository can be read")).into_owned();
        let path = path.strip_prefix(root()).expect("it was found under the root").to_string_lossy().into_owned();
        Self { path, text }
    }

    /// Returns the numbered lines of code without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let cut = |line: &'_ str| -> usize {
            let is_comment = line.trim_start().starts_with("//");
            if is_comment { 0 } else { line.find(" // ").unwrap_or(line.len()) }
        };
        self.text.lines().enumerate().map(move |(index, line)| (index + 1, &line[..cut(line)]))
    }

    /// Returns the numbered lines of code that ship: what stands before the unit tests, which come last in a file.
    fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines: Vec<_> = self.code().collect();
        let begins_tests = |pair: &[(usize, &str)]| {
            pair[0].1.trim() == "#[cfg(test)]" && pair[1].1.contains("mod ") && pair[1].1.ends_with('{')
        };
        let end = lines.windows(2).position(begins_tests).unwrap_or(lines.len());
        lines.into_iter().take(end)
    }

    /// Returns the module of the root that a file of `src` belongs to, and how deep below the root its own module is.
    fn place(&self) -> (String, usize) {
        let inner = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let mut parts = inner.split('/');
        (parts.next().unwrap_or_default().to_owned(), 1 + parts.count())
    }
}

fn sources(folder: &str) -> Vec<Source> {
    files(folder, &[".rs"]).iter().map(|path| Source::read(path)).collect()
}

/// Returns the identifiers that follow `prefix` in `line`, also those of `prefix{a::…, b}` on the same line.
fn named_after<'a>(line: &'a str, prefix: &str) -> Vec<&'a str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in line.match_indices(prefix) {
        if line[..at].ends_with(is_word) {
            continue;
        }
        let rest = &line[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.push(&rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())]);
            continue;
        };
        let mut depth = 0_usize;
        let mut begins = true;
        for (index, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if begins && is_word(c) => {
                    begins = false;
                    let item = &list[index..];
                    found.push(&item[..item.find(|c| !is_word(c)).unwrap_or(item.len())]);
                }
                _ => {}
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// Fails with every offence, each with the rule's reason.
fn hold(rule: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{} offences against: {rule}\n  {}\n", offences.len(), offences.join("\n  "));
}

fn part(name: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.name == name)
}

#[test]
fn modules_use_lower_levels_only() {
    let mut offences = Vec::new();
    for source in sources("src").iter().filter(|source| source.path != "src/lib.rs") {
        let (own, depth) = source.place();
        let Some(me) = part(&own) else {
            offences.push(format!("{}: `{own}` has no level: add it to PARTS in raft-tests/tidy.rs", source.path));
            continue;
        };
        let to_root = "super::".repeat(depth);
        let above = format!("super::{to_root}");
        for (number, line) in source.code() {
            let mut used = named_after(line, "crate::");
            if own == "main" {
                used.extend(named_after(line, "hasup::"));
            } else if !line.contains(&above) {
                // In unit tests the same words name the file itself: only names of other parts are meant.
                used.extend(named_after(line, &to_root).into_iter().filter(|name| {
                    part(name).is_some() && !root().join(format!("src/{own}/{name}.rs")).exists() && depth > 1
                }));
            }
            for name in used {
                let Some(other) = part(name).filter(|other| other.name != own) else { continue };
                let is_outside = OUTSIDERS.contains(&own.as_str()) && !OUTSIDERS_MAY_USE.contains(&name);
                if is_outside {
                    offences
                        .push(format!("{}:{number}: {own} judges from outside and must not use {name}", source.path));
                } else if other.level >= me.level && !MAY_MEET.contains(&(own.as_str(), name)) {
                    let (mine, its) = (me.level, other.level);
                    offences.push(format!("{}:{number}: {own} (level {mine}) uses {name} (level {its})", source.path));
                }
            }
        }
    }
    hold("a module uses lower levels only, and neighbours on a level never meet", &offences);
}

#[test]
fn pure_modules_touch_nothing() {
    let mut offences = Vec::new();
    for source in sources("src") {
        if !part(&source.place().0).is_some_and(|part| part.is_pure) {
            continue;
        }
        for (number, line) in source.shipped() {
            for banned in IMPURE.iter().filter(|banned| line.contains(**banned)) {
                offences.push(format!("{}:{number}: names `{banned}`", source.path));
            }
        }
    }
    hold("what hasup decides is plain data in, plain data out", &offences);
}

#[test]
fn clocks_are_read_in_one_place() {
    let mut offences = Vec::new();
    for source in sources("src").iter().filter(|source| source.path != "src/sys/clock.rs") {
        for (number, line) in source.shipped() {
            for banned in ["clock_gettime", "now_utc(", "SystemTime::now("].iter().filter(|word| line.contains(**word))
            {
                offences.push(format!("{}:{number}: calls `{banned}`", source.path));
            }
        }
    }
    hold("sys/clock.rs alone reads a clock; tokio's serves time limits", &offences);
}

#[test]
fn no_leftovers() {
    // Written in two halves, so that this file holds none of them.
    let banned = [
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
        concat!("XX", "X"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("db", "g!("),
    ];
    let mut offences = Vec::new();
    for source in sources("src").iter().chain(&sources("raft-tests")) {
        for (index, line) in source.text.lines().enumerate() {
            for word in banned.iter().filter(|word| line.contains(**word)) {
                offences.push(format!("{}:{}: holds `{word}`", source.path, index + 1));
            }
        }
    }
    hold("what is unfinished is not committed; what is open is an issue", &offences);
}

#[test]
fn every_source_file_is_compiled() {
    let manifests: String = ["Cargo.toml", "raft-tests/Cargo.toml"]
        .iter()
        .map(|path| fs::read_to_string(root().join(path)).expect("the manifest can be read"))
        .collect();
    let mut offences = Vec::new();
    for source in sources("src").iter().chain(&sources("raft-tests")) {
        let path = Path::new(&source.path);
        if path.parent().is_some_and(|folder| root().join(folder).join("Cargo.toml").is_file())
            && path.ends_with("lib.rs")
        {
            // a package of its own
            continue;
        }
        let in_tests = path.strip_prefix("raft-tests").unwrap_or(path).to_string_lossy();
        if manifests.contains(&format!("path = \"{in_tests}\"")) || source.path == "src/main.rs" {
            continue;
        }
        // `x/mod.rs` is the module x of the folder beside it.
        let path = if path.ends_with("mod.rs") { path.parent().expect("it lies in a folder") } else { path };
        let folder = path.parent().expect("it lies in a folder");
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let parents =
            [folder.with_extension("rs"), folder.join("main.rs"), folder.join("lib.rs"), folder.join("mod.rs")];
        let is_declared = parents.iter().filter(|parent| **parent != path).any(|parent| {
            fs::read_to_string(root().join(parent)).is_ok_and(|text| {
                text.lines()
                    .any(|line| line.trim().ends_with(&format!("mod {name};")) && !line.trim().starts_with("//"))
            })
        });
        if !is_declared {
            offences.push(format!("{}: no `mod {name};` leads to it", source.path));
        }
    }
    hold("no orphan file", &offences);
}

#[test]
fn files_say_what_they_are_and_stay_readable() {
    let mut offences = Vec::new();
    for source in sources("src").iter().chain(&sources("raft-tests")) {
        if !source.text.starts_with("//!") {
            offences.push(format!("{}: begins without a `//!` line that says what lives here", source.path));
        }
        let lines = source.text.lines().count();
        if lines > LINES_MAX && !source.text.contains("tidy: long because ") {
            offences.push(format!(
                "{}: {lines} lines, limit {LINES_MAX}. Split it by owner of state, or say `tidy: long because …`",
                source.path
            ));
        }
    }
    hold("one main type a file, and a header", &offences);
}

#[test]
fn the_top_level_stays_small() {
    let mut offences = Vec::new();
    for entry in fs::read_dir(root()).expect("the repository can be read") {
        let name = entry.expect("the repository can be read").file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()) {
            offences.push(format!("{name}: tool settings go in dotfiles, the rest in a folder that exists"));
        }
    }
    hold("the top level holds what TOP_LEVEL in raft-tests/tidy.rs lists", &offences);
}

#[test]
fn nothing_tells_where_it_was_made() {
    let banned = [
        concat!("/wo", "rk/"),
        concat!("/tmp/", "wt"),
        concat!("/tmp/", "plan"),
        concat!("../sha", "red"),
        concat!("clau", "de"),
        concat!("anthro", "pic"),
        concat!("language ", "model"),
        concat!("/root/", ".cargo"),
    ];
    let mut offences = Vec::new();
    for path in files("", &[]) {
        // Names of published packages, checked by cargo alone.
        if path.ends_with("Cargo.lock") {
            continue;
        }
        let source = Source::read(&path);
        for (index, line) in source.text.lines().enumerate() {
            let small = line.to_lowercase();
            for word in banned.iter().filter(|word| small.contains(**word)) {
                offences.push(format!("{}:{}: holds `{word}`", source.path, index + 1));
            }
        }
    }
    hold("the repository stands on its own, wherever it is checked out", &offences);
}

#[test]
fn every_dependency_is_used() {
    let mut offences = Vec::new();
    for (manifest, folders) in [("Cargo.toml", &["src"][..]), ("raft-tests/Cargo.toml", &["raft-tests"][..])] {
        let code: String = folders.iter().flat_map(|folder| sources(folder)).map(|source| source.text).collect();
        let text = fs::read_to_string(root().join(manifest)).expect("the manifest can be read");
        let mut is_list = false;
        for line in text.lines() {
            if line.starts_with('[') {
                is_list = line.ends_with("dependencies]");
            } else if let Some((name, _)) = line.split_once('=').filter(|_| is_list && !line.starts_with('#')) {
                let name = name.trim().trim_end_matches(".workspace").replace('-', "_");
                let is_used = [format!("{name}::"), format!("use {name}"), format!("{name}!")]
                    .iter()
                    .any(|form| code.contains(form.as_str()));
                if !is_used {
                    offences.push(format!("{manifest}: {name} is named nowhere"));
                }
            }
        }
    }
    hold("few dependencies, each for a reason", &offences);
}

#[test]
fn the_table_of_levels_is_that_of_the_crate() {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs can be read");
    let declared: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .chain(["main"])
        .collect();
    let listed: BTreeSet<_> = PARTS.iter().map(|part| part.name).collect();
    let stale: Vec<_> =
        listed.symmetric_difference(&declared).map(|name| format!("{name}: only in one of them")).collect();
    hold("PARTS in raft-tests/tidy.rs and the modules of src/lib.rs are the same", &stale);
}

#[test]
fn imports_are_understood() {
    assert_eq!(named_after("use crate::ha::record::Trust;", "crate::"), ["ha"]);
    assert_eq!(named_after("use crate::{a::{b, c}, d};", "crate::"), ["a", "d"]);
    assert_eq!(named_after("x(crate::a::b, crate::c)", "crate::"), ["a", "c"]);
    assert_eq!(named_after("mycrate::a", "crate::"), [""; 0]);
    let source =
        Source { path: "src/a/b.rs".to_owned(), text: "// x\na; // crate::b\n#[cfg(test)]\nmod t {".to_owned() };
    assert_eq!(source.place(), ("a".to_owned(), 2));
    assert_eq!(source.shipped().collect::<Vec<_>>(), [(1, ""), (2, "a;")]);
}
