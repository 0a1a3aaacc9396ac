//! The hosts of listeners and routes. Pure.

/// Hosts that a listener takes, or that a route is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// Every one.
    Any,
    /// Those that end so, with a dot at the beginning: `.example.com` is of `a.example.com` and `a.b.example.com`.
    Below(String),
    /// This one.
    One(String),
}

/// How specific hosts are that a host is among: an exact one, then the longest end, then any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Specific {
    /// [`Hosts::Any`].
    Any,
    /// [`Hosts::Below`], with its length.
    Below(usize),
    /// [`Hosts::One`].
    One,
}

impl Hosts {
    /// Reads `example.com`, `*.example.com`, or nothing for every host.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        let (end, hosts) = match text.strip_prefix('*') {
            Some(end) if end.len() > 1 && end.starts_with('.') => (end, Self::Below(end.into())),
            Some(_) => ("*", Self::Any),
            None if text.is_empty() => ("", Self::Any),
            None => (&*text, Self::One(text.clone())),
        };
        match end.contains('*') {
            true => Err(format!(
                "{text:?} is neither a host nor *. and a host's end"
            )),
            false => Ok(hosts),
        }
    }

    /// How specific they are.
    pub fn specific(&self) -> Specific {
        match self {
            Self::Any => Specific::Any,
            Self::Below(end) => Specific::Below(end.len()),
            Self::One(_) => Specific::One,
        }
    }

    /// Whether a host, in lower case, is among them.
    pub fn contain(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Below(end) => host.len() > end.len() && host.ends_with(&**end),
            Self::One(one) => one == host,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_label_or_more() {
        let contain = |hosts: &str, host: &str| Hosts::parse(hosts).unwrap().contain(host);
        for (hosts, host, expected) in [
            ("", "a", true),
            ("A.example", "a.example", true),
            ("a.example", "b.a.example", false),
            ("*.example", "a.example", true),
            ("*.example", "b.a.example", true),
            ("*.example", "example", false),
            ("*.example", ".example", false),
            ("*.example", "aexample", false),
        ] {
            assert_eq!(contain(hosts, host), expected, "{hosts} {host}");
        }
        for bad in ["*", "*.", "*a", "a.*", "*.*.a", "a*b"] {
            assert!(Hosts::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_exact_host_comes_before_the_longest_end() {
        let specific = |hosts: &str| Hosts::parse(hosts).unwrap().specific();
        let ladder = ["", "*.example", "*.a.example", "a"];
        assert!(ladder.map(specific).is_sorted_by(|a, b| a < b));
    }
}
