//! Which actions go to the backend. Pure.

/// Patterns of actions: a name, in which each `*` stands for any text, the empty one included.
#[derive(Clone, Debug)]
pub(super) struct Patterns(Vec<String>);

impl Patterns {
    /// Patterns that match every action.
    pub(super) fn all() -> Self {
        Self(vec!["*".to_owned()])
    }

    pub(super) fn new(patterns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self(patterns.into_iter().map(Into::into).collect())
    }

    /// Returns true if one of the patterns matches. Of the actions that begin with `Client/`, which are the server's
    /// own, none does.
    pub(super) fn matches(&self, action: &str) -> bool {
        !action.starts_with("Client/") && self.0.iter().any(|pattern| matches(pattern, action))
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    // There is always a first part.
    let first = parts.next().unwrap_or_default();
    let Some(last) = parts.next_back() else { return pattern == text };
    let Some(inner) = text.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else { return false };
    // The first place for each part leaves the most room for those behind it.
    parts.try_fold(inner, |rest, part| rest.find(part).map(|at| &rest[at + part.len()..])).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, action, expected) in [
            ("vote", "vote", true),
            ("vote", "votes", false),
            ("vote", "Vote", false),
            ("", "vote", false),
            ("*", "vote", true),
            ("comment/*", "comment/add", true),
            ("comment/*", "comment/", true),
            ("comment/*", "comment", false),
            ("comment/*", "a/comment/add", false),
            ("*/add", "comment/add", true),
            ("*/add", "/add", true),
            ("*/add", "comment/added", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "abbc", true),
            ("a*b*c", "acb", false),
            ("a*bc*c", "abc", false),
            ("**", "", true),
            ("ü*", "über", true),
        ] {
            assert_eq!(matches(pattern, action), expected, "{pattern} {action}");
        }
    }

    #[test]
    fn the_actions_of_the_server_never_go_there() {
        assert!(Patterns::all().matches("vote"));
        assert!(!Patterns::all().matches("Client/join"));
        assert!(!Patterns::new(["Client/*"]).matches("Client/join"));
        let patterns = Patterns::new(["comment/*", "vote"]);
        assert!(patterns.matches("vote") && patterns.matches("comment/add") && !patterns.matches("hello"));
        assert!(!Patterns::new([""; 0]).matches("vote"));
    }
}
