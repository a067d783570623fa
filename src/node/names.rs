//! Members by name: the brain knows them by number, people do not.

use super::database::parse_member;
use crate::kv::State;
use crate::types::NodeId;

/// How the brain's sentences speak of a member.
const WORD: &str = "node ";

/// Returns a sentence of the brain with each member that it speaks of by number (`node 2`), or in one life of its data (`n2_i5`),
/// called by its name alone, also who is a member no more. Who never was one keeps the number.
pub(super) fn named(sentence: &str, state: &State) -> String {
    let name_of = |node| state.name_of(node).map(ToString::to_string);
    with_names(&without_lives(sentence, name_of), name_of)
}

/// Returns what a member is called, or was last called; `node 7` for one that never was.
pub(super) fn name_of(node: NodeId, state: &State) -> String {
    state.name_of(node).map_or_else(|| format!("{WORD}{node}"), ToString::to_string)
}

fn without_lives(sentence: &str, name_of: impl Fn(NodeId) -> Option<String>) -> String {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut text = String::new();
    let mut rest = sentence;
    while let Some(at) = rest.find(is_of_word) {
        let (before, word) = rest.split_at(at);
        let (word, after) = word.split_at(word.find(|c| !is_of_word(c)).unwrap_or(word.len()));
        text += before;
        text += &parse_member(word).and_then(|member| name_of(member.node)).unwrap_or_else(|| word.to_owned());
        rest = after;
    }
    text + rest
}

fn with_names(sentence: &str, name_of: impl Fn(NodeId) -> Option<String>) -> String {
    let mut text = String::new();
    let mut rest = sentence;
    while let Some(at) = rest.find(WORD) {
        let (before, after) = rest.split_at(at + WORD.len());
        let is_word = before[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric());
        let length = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let number = after[..length].parse().ok().filter(|_| is_word);
        rest = after;
        match number.and_then(|number| name_of(NodeId(number))) {
            Some(name) => {
                text = text + &before[..at] + &name;
                rest = &after[length..];
            }
            None => text += before,
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
            ("assigns node 2 under generation 2, timeline 2", "assigns db2 under generation 2, timeline 2"),
            ("node 1 stated 1:0/3000148; node 12 is gone", "db1 stated 1:0/3000148; node 12 is gone"),
            ("what node 3's log holds, node 4", "what db3's log holds, db4"),
            ("anode 1, the node, node db1, node ", "anode 1, the node, node db1, node "),
            ("", ""),
        ] {
            assert_eq!(named(text), expected);
        }
    }

    #[test]
    fn members_in_a_life_of_their_data_are_called_by_name_alone() {
        let named = |text| without_lives(text, |node| (node.0 < 10).then(|| format!("db{}", node.0)));
        for (text, expected) in [
            (
                "commits wait for 1 of n2_i5, n3_i1; wanted is nobody",
                "commits wait for 1 of db2, db3; wanted is nobody",
            ),
            ("nobody, while n2_i1 follow", "nobody, while db2 follow"),
            ("n12_i1 is no member, an2_i1 n2_i n2_i1x are none", "n12_i1 is no member, an2_i1 n2_i n2_i1x are none"),
            ("n2_i1", "db2"),
            ("", ""),
        ] {
            assert_eq!(named(text), expected);
        }
    }
}
