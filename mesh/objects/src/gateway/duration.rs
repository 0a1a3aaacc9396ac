//! Durations as the Gateway API writes them.

use std::time::Duration;

/// Longest duration of GEP-2257, four groups of five digits.
const MAX_GROUPS: usize = 4;

/// A duration of the Gateway API (GEP-2257): `1h2m3s4ms`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut groups) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        groups += 1;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest.get(..digits).filter(|_| digits <= 5)?.parse().ok()?;
        rest = &rest[digits..];
        let (unit, millis) = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)]
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total += Duration::from_millis(number * millis);
    }
    (1..=MAX_GROUPS).contains(&groups).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_the_gateway_api() {
        for (text, millis) in [
            ("0s", Some(0)),
            ("500ms", Some(500)),
            ("1m30s", Some(90_000)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("100000s", None),
            ("1s1s1s1s1s", None),
            ("-1s", None),
        ] {
            assert_eq!(
                parse_duration(text),
                millis.map(Duration::from_millis),
                "{text:?}"
            );
        }
    }
}
