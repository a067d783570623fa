//! Query strings and percent encoding, read without trust and written without surprises.

/// The parameters of a request, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::http) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=b&c`; what cannot be decoded is taken as it stands.
    pub(in crate::http) fn parse(text: &str) -> Self {
        let decode_value = |part: &str| decode(&part.replace('+', " ")).unwrap_or_else(|| part.to_owned());
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode_value(name), decode_value(value))
        };
        Self(text.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    /// Returns the first value of `name`.
    pub(in crate::http) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Returns whether `name` is there and does not say no.
    pub(in crate::http) fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value != "false" && value != "0")
    }
}

/// Writes `text` for a path or a query: all but letters, digits and `-._~/` as `%XX`.
pub(in crate::http) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Reads `%XX`; nothing where an escape is broken or the result is no UTF-8.
pub(in crate::http) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_survives_encoding() {
        for text in ["", "a/b c", "ä%&=?#+", "a//b/../c", "\u{0}\n"] {
            assert_eq!(decode(&encode(text)).as_deref(), Some(text));
        }
        for bad in ["%", "%1", "%+1", "%FF", "%zz"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        assert_eq!(Query::parse("a=1&b&c=%zz&a=2").get("a"), Some("1"));
        assert!(Query::parse("b").has("b") && !Query::parse("b=0").has("b"));
    }
}
