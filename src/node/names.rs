//! Members by name: the brain knows them by number, people do not.

use crate::kv::State;
use crate::types::NodeId;

/// How the brain's sentences speak of a member.
const WORD: &str = "node ";

/// Returns a sentence of the brain with each member that it speaks of by number called by its name; who is no member keeps the number.
pub(super) fn named(sentence: &str, state: &State) -> String {
    with_names(sentence, |node| state.members.get(&node).map(|member| member.name.to_string()))
}

fn with_names(sentence: &str, name_of: impl Fn(NodeId) -> Option<String>) -> String {
    let mut text = String::new();
    let mut rest = sentence;
    while let Some(at) = rest.find(WORD) {
        let (before, after) = rest.split_at(at + WORD.len());
        let is_word = before[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric());
        let length = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let number = after[..length].parse().ok().filter(|_| is_word);
        text += before;
        rest = after;
        if let Some(name) = number.and_then(|number| name_of(NodeId(number))) {
            text += &name;
            rest = &after[length..];
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_named_and_all_else_stays() {
        let named = |text| with_names(text, |node| (node.0 < 10).then(|| format!("db{}", node.0)));
        for (text, expected) in [
            ("assigns node 2 under generation 2, timeline 2", "assigns node db2 under generation 2, timeline 2"),
            ("node 1 stated 1:0/3000148; node 12 is gone", "node db1 stated 1:0/3000148; node 12 is gone"),
            ("what node 3's log holds, node 4", "what node db3's log holds, node db4"),
            ("anode 1, the node, node db1, node ", "anode 1, the node, node db1, node "),
            ("", ""),
        ] {
            assert_eq!(named(text), expected);
        }
    }
}
