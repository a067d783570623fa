//! Sizes as people read them.

use std::fmt;

/// A number of bytes, printed in the largest unit that leaves two digits, as PostgreSQL prints them: `9000 B`, `10 kB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
        let mut rest = self.0;
        let mut unit = "B";
        for larger in UNITS {
            if rest < 10 * 1024 {
                break;
            }
            rest /= 1024;
            unit = larger;
        }
        write!(f, "{rest} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_two_digits_or_more() {
        for (bytes, text) in
            [(0, "0 B"), (10_239, "10239 B"), (10_240, "10 kB"), (20_000_000, "19 MB"), (u64::MAX, "16383 PB")]
        {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
