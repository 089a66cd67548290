//! Durations as people write them: `250ms`, `30s`, `5m`, `2h`, `1d`, and sums such as `1m30s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration that is read from a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// Why a text is no [`Span`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no duration, expected a number with its unit such as 30s, 5m or 250ms")]
pub struct SpanError(String);

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || SpanError(text.to_owned());
        let mut rest = text.trim();
        let mut millis: u64 = 0;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let (unit, length) = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)]
                .into_iter()
                .find(|(unit, _)| rest.starts_with(unit))
                .ok_or_else(wrong)?;
            rest = &rest[unit.len()..];
            millis = number.checked_mul(length).and_then(|n| millis.checked_add(n)).ok_or_else(wrong)?;
        }
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_may_be_sums() {
        for (text, millis) in [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("1m30s", 90_000), ("2h", 7_200_000)] {
            assert_eq!(text.parse::<Span>().unwrap().0, Duration::from_millis(millis), "{text}");
        }
        for text in ["", "30", "s", "1.5s", "-1s", "99999999999999999999s", "1x"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
