//! Paths, normalised once: routing, policy and the backend see the same one.
//!
//! Percent-encoded characters that need no encoding are decoded, dot segments are resolved, and a run of slashes is one
//! slash. Where two readers could still disagree (an encoded slash or backslash, a control character, a bad escape),
//! the request is refused.

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// Not one of the kind that servers get.
    #[error("the path begins with no /")]
    Relative,
    /// `%` and not two hexadecimal digits.
    #[error("the path has a bad escape")]
    Escape,
    /// A slash, backslash or control character, encoded or bare.
    #[error("the path has an encoded slash, a backslash or a control character")]
    Ambiguous,
    /// More `..` than segments.
    #[error("the path leads out of the root")]
    Outside,
}

/// The one way to write a path.
pub fn normalise(path: &str) -> Result<String, BadPath> {
    if !path.starts_with('/') {
        return Err(BadPath::Relative);
    }
    let decoded = decode_unreserved(path)?;
    let mut segments: Vec<&str> = Vec::new();
    let mut directory = false;
    for segment in decoded.split('/').skip(1) {
        directory = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop().ok_or(BadPath::Outside)?;
            }
            segment => segments.push(segment),
        }
    }
    let mut normal = String::with_capacity(decoded.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if directory || normal.is_empty() {
        normal.push('/');
    }
    Ok(normal)
}

/// Decodes what needs no encoding, and writes all other escapes in capitals.
fn decode_unreserved(path: &str) -> Result<String, BadPath> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(found) = rest.find('%') {
        plain(&rest[..found], &mut decoded)?;
        let byte = escape(rest.as_bytes().get(found + 1..found + 3)).ok_or(BadPath::Escape)?;
        match byte {
            b'/' | b'\\' | 0..0x20 | 0x7f => return Err(BadPath::Ambiguous),
            b'-' | b'.' | b'_' | b'~' => decoded.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => decoded.push(char::from(byte)),
            byte => decoded.push_str(&format!("%{byte:02X}")),
        }
        rest = &rest[found + 3..];
    }
    plain(rest, &mut decoded)?;
    Ok(decoded)
}

fn plain(text: &str, decoded: &mut String) -> Result<(), BadPath> {
    if text
        .bytes()
        .any(|byte| byte == b'\\' || byte <= b' ' || byte == 0x7f)
    {
        return Err(BadPath::Ambiguous);
    }
    decoded.push_str(text);
    Ok(())
}

/// Two hexadecimal digits.
fn escape(digits: Option<&[u8]>) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let [high, low] = digits? else { return None };
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

/// The bytes that a query's name or value stands for; a bad escape stands for itself.
pub fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escaped = escape(bytes.get(at + 1..at + 3)).filter(|_| *byte == b'%');
        decoded.push(escaped.unwrap_or(*byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_resource_has_one_path_and_what_is_ambiguous_is_refused() {
        for (path, normal) in [
            ("/", Ok("/")),
            ("/a/b", Ok("/a/b")),
            ("/a/b/", Ok("/a/b/")),
            ("//a///b", Ok("/a/b")),
            ("/a/./b/../c", Ok("/a/c")),
            ("/a/b/..", Ok("/a/")),
            ("/a/.", Ok("/a/")),
            ("/%61dmin", Ok("/admin")),
            ("/a/%2e%2E/admin", Ok("/admin")),
            ("/a%20b%c3%bc", Ok("/a%20b%C3%BC")),
            ("/a;b=c", Ok("/a;b=c")),
            ("/a%25%32f", Ok("/a%252f")),
            ("/..", Err(BadPath::Outside)),
            ("/a/../..", Err(BadPath::Outside)),
            ("/a%2fb", Err(BadPath::Ambiguous)),
            ("/a%5Cb", Err(BadPath::Ambiguous)),
            ("/a\\b", Err(BadPath::Ambiguous)),
            ("/a%00", Err(BadPath::Ambiguous)),
            ("/a%0d%0a", Err(BadPath::Ambiguous)),
            ("/a%", Err(BadPath::Escape)),
            ("/a%4", Err(BadPath::Escape)),
            ("/a%zz", Err(BadPath::Escape)),
            ("*", Err(BadPath::Relative)),
            ("", Err(BadPath::Relative)),
            ("a", Err(BadPath::Relative)),
        ] {
            let found = normalise(path);
            assert_eq!(found.as_deref(), normal.as_ref().copied(), "{path:?}");
            if let Ok(found) = found {
                assert_eq!(normalise(&found).as_deref(), Ok(&*found), "{path:?} twice");
            }
        }
    }
}
