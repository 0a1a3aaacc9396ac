//! Regular expressions that users write about requests.

use regex::{Regex, RegexBuilder};

/// Bytes that a compiled expression may take: with an automaton there is no slow one, only a large one.
const MAX_SIZE: usize = 256 << 10;
/// Characters of its text; as many as the Gateway API admits.
const MAX_TEXT: usize = 4096;

/// An expression that matches a text as a whole, in the syntax of the crate `regex` (RE2's, without look-around and
/// back-references). Matching takes time in proportion to the text, whatever the expression.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

/// An expression that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no regular expression that can be used: {reason}")]
pub struct BadPattern {
    text: String,
    reason: String,
}

impl Pattern {
    /// Compiles an expression.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        let bad = |reason: String| BadPattern {
            text: text.chars().take(80).collect(),
            reason,
        };
        if text.len() > MAX_TEXT {
            return Err(bad(format!("it is longer than {MAX_TEXT} characters")));
        }
        // By itself first, so that it can't close the group around it.
        compile(text).map_err(|error| bad(reason(&error)))?;
        let whole = compile(&format!("^(?:{text})$"));
        let regex = whole.map_err(|error| bad(reason(&error)))?;
        let text = text.into();
        Ok(Self { text, regex })
    }

    /// Whether it matches all of a text.
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

fn compile(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text)
        .size_limit(MAX_SIZE)
        .dfa_size_limit(MAX_SIZE)
        .build()
}

/// The last line of what the compiler says: the others point at the place.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.trim_start_matches("error: ").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_about_the_whole_text_and_of_bounded_size() {
        let matches = |pattern: &str, text: &str| Pattern::parse(pattern).unwrap().matches(text);
        assert!(matches("/a|/b", "/b") && !matches("/a|/b", "/ab"));
        assert!(matches("/v[0-9]+/.*", "/v12/x") && !matches("v[0-9]+", "/v1"));
        // The last one hides the end of the group around it.
        for bad in [
            "(",
            "a)(b",
            "(?=a)",
            r"(a)\1",
            "(a{1000}){1000}",
            &"a".repeat(5000),
            "(?x)a # b",
        ] {
            assert!(Pattern::parse(bad).is_err(), "{bad:.20}");
        }
        let error = Pattern::parse("(").unwrap_err().to_string();
        assert!(error.contains("unclosed group"), "{error}");
    }
}
