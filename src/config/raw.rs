//! What was said, by whom, before anything is checked against anything else.

use std::collections::BTreeMap;
use std::fmt;

use toml::de::{DeTable, DeValue};

use super::defaults::{Kind, SETTINGS, setting};

/// Where a value came from, weakest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of a file.
    File {
        /// The file's name.
        name: String,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// A flag of the command line, as `--peer-port`.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Env(name) | Self::Flag(name) => name.fmt(f),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the value stands.
    pub origin: Origin,
    /// The key.
    pub key: String,
    /// The value as written, empty where there is none to show.
    pub value: String,
    /// What is wrong, as the end of "key = value …".
    pub what: String,
    /// What to do.
    pub cure: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{} ", self.key)?;
        }
        if !self.value.is_empty() {
            write!(f, "= {} ", self.value)?;
        }
        write!(f, "{}: {}", self.what, self.cure)
    }
}

/// Everything that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "the configuration has {count} problem{}:", if count == 1 { "" } else { "s" })?;
        for problem in &self.0 {
            write!(f, "\n  {problem}")?;
        }
        f.write_str("\nNothing was started. Correct them, then try `hasup config check`.")
    }
}

/// A file's name and text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layer {
    /// How messages name it.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Everything that was said about the configuration.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The node file; of several, later ones win.
    pub files: Vec<Layer>,
    /// What the node was told when it began, as [`render_remembered`] writes it. It wins over the node file for as long as that says of
    /// a setting what it said then.
    pub remembered: Option<Layer>,
    /// The environment: all that begins with `HASUP_`.
    pub env: BTreeMap<String, String>,
    /// Flags: the flag's name, the key it sets, its value.
    pub flags: Vec<(String, String, String)>,
}

/// A value of the kind its setting asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Port(u16),
    Bool(bool),
    List(Vec<String>),
    Map(BTreeMap<String, String>),
}

impl fmt::Display for Value {
    /// Prints the value as TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let toml = match self {
            Self::Text(text) => toml::Value::from(text.as_str()),
            Self::Port(port) => toml::Value::from(i64::from(*port)),
            Self::Bool(truth) => toml::Value::from(*truth),
            Self::List(items) => toml::Value::from(items.clone()),
            Self::Map(items) => toml::Value::Table(items.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect()),
        };
        toml.fmt(f)
    }
}

/// What was said last about each key.
pub(super) type Said = BTreeMap<&'static str, (Value, Origin)>;

/// What was said of each key in the node file and does not count, as the node was told otherwise when it began.
pub(super) type Outvoted = BTreeMap<&'static str, (Value, Origin)>;

/// Begins a line of what a node remembers that says what the node file said of a setting when the node was told otherwise.
const THEN_MARK: &str = "# The node file said then: ";

/// Environment variables that are no settings: flags of commands.
pub const VARIABLES_OF_COMMANDS: [&str; 5] =
    ["HASUP_API_TOKEN_FILE", "HASUP_CA_FILE", "HASUP_CONFIG", "HASUP_TARGET", "HASUP_TOKEN"];
/// How those begin that hasup's own tests read.
const OF_TESTS: [&str; 3] = ["HASUP_BLESS", "HASUP_SIM_", "HASUP_TEST_"];

/// Gathers all layers; what cannot be understood goes to `problems`.
pub(super) fn gather(sources: &Sources, problems: &mut Vec<Problem>) -> Said {
    gather_all(sources, problems).0
}

/// As [`gather`], and what of the node file does not count.
pub(super) fn gather_all(sources: &Sources, problems: &mut Vec<Problem>) -> (Said, Outvoted) {
    let (mut said, mut outvoted) = (Said::new(), Outvoted::new());
    for layer in &sources.files {
        read_file(layer, &mut said, problems);
    }
    if let Some(layer) = &sources.remembered {
        let (mut told, mut then) = (Said::new(), Said::new());
        read_file(layer, &mut told, problems);
        let text = layer.text.lines().filter_map(|line| line.strip_prefix(THEN_MARK)).collect::<Vec<_>>().join("\n");
        // written by hasup; what a person made of it counts for nothing
        read_file(&Layer { name: layer.name.clone(), text }, &mut then, &mut Vec::new());
        for (key, value) in told {
            match said.get(key) {
                Some((now, _)) if then.get(key).map(|(then, _)| then) != Some(now) => {}
                _ => {
                    let before = said.insert(key, value);
                    outvoted.extend(before.map(|before| (key, before)));
                }
            }
        }
    }
    blame_unknown_variables(&sources.env, problems);
    for setting in SETTINGS {
        if let Some(text) = sources.env.get(&setting.env()) {
            take_text(setting.key, text, Origin::Env(setting.env()), &mut said, problems);
        }
    }
    for (flag, key, text) in &sources.flags {
        take_text(key, text, Origin::Flag(flag.clone()), &mut said, problems);
    }
    outvoted.retain(|key, _| matches!(said.get(key), Some((_, Origin::File { .. }))));
    (said, outvoted)
}

/// Tells of variables that nobody reads and that are misspelt by their looks. Others are left alone: an environment for containers
/// names the ports of a service called hasup so.
fn blame_unknown_variables(env: &BTreeMap<String, String>, problems: &mut Vec<Problem>) {
    let known: Vec<String> =
        SETTINGS.iter().map(super::Setting::env).chain(VARIABLES_OF_COMMANDS.map(str::to_owned)).collect();
    for name in env.keys().filter(|name| name.starts_with("HASUP_") && !known.contains(name)) {
        if OF_TESTS.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        let close = known.iter().map(|known| (edits(name, known), known)).min().filter(|(edits, _)| *edits <= 2);
        let section = |name: &str| name.split('_').nth(1).map(str::to_owned);
        if close.is_none() && !known.iter().any(|known| section(known) == section(name)) {
            continue;
        }
        // its value may be a secret under a wrong name
        problems.push(Problem {
            origin: Origin::Env(name.clone()),
            key: String::new(),
            value: String::new(),
            what: "is no variable that hasup reads".to_owned(),
            cure: close
                .map_or_else(|| "unset it".to_owned(), |(_, near)| format!("did you mean `{near}`? Else unset it")),
        });
    }
}

fn read_file(layer: &Layer, said: &mut Said, problems: &mut Vec<Problem>) {
    let line_of = |offset: usize| layer.text.get(..offset).map_or(1, |before| before.matches('\n').count() + 1);
    let origin = |offset: usize| Origin::File { name: layer.name.clone(), line: line_of(offset) };
    let (table, errors) = DeTable::parse_recoverable(&layer.text);
    for error in &errors {
        problems.push(Problem {
            origin: origin(error.span().map_or(0, |span| span.start)),
            key: String::new(),
            value: String::new(),
            what: "is no TOML".to_owned(),
            cure: error.message().replace('\n', " "),
        });
    }
    if errors.is_empty() {
        walk("", table.get_ref(), &origin, said, problems);
    }
}

fn walk(
    prefix: &str,
    table: &DeTable<'_>,
    origin: &dyn Fn(usize) -> Origin,
    said: &mut Said,
    problems: &mut Vec<Problem>,
) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
        let place = origin(name.span().start);
        match (setting(&key), value.get_ref()) {
            (Some(known), found) => match of_kind(known.kind, found) {
                Some(value) => {
                    said.insert(known.key, (value, place));
                }
                None => problems.push(Problem {
                    origin: place,
                    key,
                    value: show(found),
                    what: if known.kind == Kind::Port && found.is_integer() {
                        "is out of range".to_owned()
                    } else {
                        format!("is of the wrong kind ({})", found.type_str())
                    },
                    cure: format!("use {}", known.kind.cure()),
                }),
            },
            (None, DeValue::Table(inner)) if is_section(&key) => walk(&key, inner, origin, said, problems),
            (None, found) => problems.push(Problem {
                origin: place,
                value: show(found),
                what: "is no setting".to_owned(),
                cure: nearest(&key)
                    .map_or_else(|| "remove it".to_owned(), |near| format!("did you mean `{near}`? Else remove it")),
                key,
            }),
        }
    }
}

fn is_section(key: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

fn show(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Table(_) => "{…}".to_owned(),
        DeValue::Array(_) => "[…]".to_owned(),
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(instant) => instant.to_string(),
    }
}

fn of_kind(kind: Kind, value: &DeValue<'_>) -> Option<Value> {
    match kind {
        Kind::Text => value.as_str().map(|text| Value::Text(text.to_owned())),
        Kind::Port => {
            let number = value.as_integer()?;
            let port = u16::from_str_radix(number.as_str(), number.radix()).ok()?;
            (port != 0).then_some(Value::Port(port))
        }
        Kind::Bool => value.as_bool().map(Value::Bool),
        Kind::List => match value {
            DeValue::String(text) => Some(Value::List(vec![text.to_string()])),
            DeValue::Array(items) if !items.is_empty() => items
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .map(Value::List),
            _ => None,
        },
        Kind::Map => {
            let scalar = |value: &DeValue<'_>| match value {
                DeValue::String(text) => Some(text.to_string()),
                DeValue::Integer(number) => Some(number.to_string()),
                DeValue::Float(number) => Some(number.to_string()),
                DeValue::Boolean(truth) => Some(if *truth { "on" } else { "off" }.to_owned()),
                _ => None,
            };
            let entry = |(name, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
                let name: &std::borrow::Cow<'_, str> = name.get_ref();
                scalar(value.get_ref()).map(|text| (name.to_string(), text))
            };
            value.as_table()?.iter().map(entry).collect::<Option<_>>().map(Value::Map)
        }
    }
}

/// Takes a value that an environment variable or a flag gives as text.
fn take_text(key: &str, text: &str, origin: Origin, said: &mut Said, problems: &mut Vec<Problem>) {
    let Some(known) = setting(key) else {
        problems.push(Problem {
            origin,
            key: key.to_owned(),
            value: text.to_owned(),
            what: "is no setting".to_owned(),
            cure: "remove it".to_owned(),
        });
        return;
    };
    let items = || text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let value = match known.kind {
        Kind::Text => Some(Value::Text(text.to_owned())),
        Kind::Port => text.parse().ok().filter(|port| *port != 0).map(Value::Port),
        Kind::Bool => match text {
            "true" | "1" | "yes" | "on" => Some(Value::Bool(true)),
            "false" | "0" | "no" | "off" => Some(Value::Bool(false)),
            _ => None,
        },
        Kind::List => {
            Some(items().map(str::to_owned).collect::<Vec<_>>()).filter(|all| !all.is_empty()).map(Value::List)
        }
        Kind::Map => items()
            .map(|item| item.split_once('=').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())))
            .collect::<Option<_>>()
            .map(Value::Map),
    };
    match value {
        Some(value) => {
            said.insert(known.key, (value, origin));
        }
        None => problems.push(Problem {
            origin,
            key: key.to_owned(),
            value: format!("{text:?}"),
            what: "cannot be read".to_owned(),
            cure: format!("use {}", known.kind.cure()),
        }),
    }
}

/// Returns the setting that `key` most likely was meant to be: few letters differ, or only the section does.
fn nearest(key: &str) -> Option<&'static str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let close = SETTINGS.iter().map(|setting| (edits(key, setting.key), setting.key)).min()?;
    if close.0 <= 2 {
        return Some(close.1);
    }
    SETTINGS.iter().find(|setting| last(setting.key) == last(key)).map(|setting| setting.key)
}

/// Returns how many letters must be added, dropped or changed to make one text the other.
fn edits(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

/// Returns the text that was said last about `key`, before anything is checked.
pub fn peek(sources: &Sources, key: &str) -> Option<String> {
    match gather(sources, &mut Vec::new()).remove(key)?.0 {
        Value::Text(text) => Some(text),
        Value::Port(_) | Value::Bool(_) | Value::List(_) | Value::Map(_) => None,
    }
}

/// Returns a file that says what the flags of `sources` say.
///
/// # Errors
/// A flag's value cannot be read.
pub fn render(sources: &Sources) -> Result<String, Problems> {
    Ok(lines_of(&said_by_flags(sources)?, ""))
}

/// Returns what the node is to remember of the flags of `sources`, so that they count until the node file is edited.
///
/// # Errors
/// A flag's value cannot be read.
pub fn render_remembered(sources: &Sources) -> Result<String, Problems> {
    let told = said_by_flags(sources)?;
    let files = Sources { files: sources.files.clone(), ..Sources::default() };
    let mut then = gather(&files, &mut Vec::new());
    then.retain(|key, (value, _)| told.get(key).is_some_and(|(told, _)| told != value));
    Ok(format!("{}{}", lines_of(&told, ""), lines_of(&then, THEN_MARK)))
}

fn said_by_flags(sources: &Sources) -> Result<Said, Problems> {
    let mut problems = Vec::new();
    let flags = Sources { flags: sources.flags.clone(), ..Sources::default() };
    let said = gather(&flags, &mut problems);
    if problems.is_empty() { Ok(said) } else { Err(Problems(problems)) }
}

/// Renders `said` as TOML, each line after `prefix`.
fn lines_of(said: &Said, prefix: &str) -> String {
    // Dotted keys need no section headers, and keep the order of the table.
    let order = |key: &str| SETTINGS.iter().position(|setting| setting.key == key);
    let mut lines: Vec<_> =
        said.iter().map(|(key, (value, _))| (order(key), format!("{prefix}{key} = {value}\n"))).collect();
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}
