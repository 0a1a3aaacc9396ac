//! Cookies of requests (RFC 6265, section 4.2).

use http::HeaderMap;
use http::header::COOKIE;

/// The value of the first cookie of this name.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).iter();
    let pairs = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let mut named = pairs.filter(|(found, _)| *found == name);
    named.next().map(|(_, value)| value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_cookie_is_found_by_its_whole_name_in_any_line() {
        let mut headers = HeaderMap::new();
        for line in ["a=1; ab=2", "b=\"3\"; junk; a=4; =5"] {
            headers.append(COOKIE, HeaderValue::from_static(line));
        }
        for (name, value) in [
            ("a", Some("1")),
            ("ab", Some("2")),
            ("b", Some("3")),
            ("A", None),
            ("junk", None),
        ] {
            assert_eq!(cookie(&headers, name), value, "{name}");
        }
    }
}
