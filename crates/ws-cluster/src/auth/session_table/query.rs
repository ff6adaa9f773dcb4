//! A site's query and the values of its parameters. Pure. Only the database can check whether the query fits, when it
//! prepares it.

use std::net::IpAddr;

use mysql_async::Value;
use mysql_common::named_params::ParsedNamedParams;

use super::{SessionTableError, cache::SessionQuestion};

/// The meaning of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parameter {
    Session,
    User,
    Ip,
    /// The address in the form of IPv6.
    Ip6,
    Agent,
}

/// The form of an IPv4 address in `:ip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressForm {
    /// `192.0.2.1`.
    Canonical,
    /// `::ffff:192.0.2.1`, as a site sees it if its server listens on IPv6 for both.
    Mapped,
}

/// A query with `?` for each of its parameters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) sql: String,
    /// The meaning of each `?`, in order. If the site wrote `?` itself, there must be exactly one.
    pub(super) parameters: Vec<Parameter>,
}

impl Query {
    /// Parses the query for a session: `?`, `:session` and `:id` are the session id.
    pub(super) fn session(sql: &str) -> Result<Self, SessionTableError> {
        Self::parse("session", sql, Parameter::Session, |parameter| parameter == Parameter::Session)
    }

    /// Parses the query for groups: `?`, `:user` and `:id` are the user's id, `:session` is the session's.
    pub(super) fn groups(sql: &str) -> Result<Self, SessionTableError> {
        Self::parse("groups", sql, Parameter::User, |parameter| {
            matches!(parameter, Parameter::User | Parameter::Session)
        })
    }

    /// Parses a query. `subject` is the meaning of `?` and `:id`. The query must have a parameter that `narrows`,
    /// because otherwise every session would get the same answer.
    fn parse(
        query: &'static str,
        sql: &str,
        subject: Parameter,
        narrows: impl Fn(Parameter) -> bool,
    ) -> Result<Self, SessionTableError> {
        let parsed =
            ParsedNamedParams::parse(sql.as_bytes()).map_err(|_| SessionTableError::MixedParameters { query })?;
        let named: Vec<Parameter> = parsed
            .params()
            .iter()
            .map(|name| match (&**name, subject) {
                (b"id", _) => Ok(subject),
                (b"session", _) => Ok(Parameter::Session),
                (b"user", Parameter::User) => Ok(Parameter::User),
                (b"ip", _) => Ok(Parameter::Ip),
                (b"ip6", _) => Ok(Parameter::Ip6),
                (b"agent", _) => Ok(Parameter::Agent),
                _ => {
                    Err(SessionTableError::UnknownParameter { query, name: String::from_utf8_lossy(name).into_owned() })
                }
            })
            .collect::<Result<_, _>>()?;
        // Only the database knows whether a `?` is a parameter or part of a text.
        let parameters = if named.is_empty() && sql.contains('?') { vec![subject] } else { named };
        if !parameters.iter().copied().any(narrows) {
            return Err(SessionTableError::NoParameter { query });
        }
        Ok(Self { sql: String::from_utf8_lossy(parsed.query()).into_owned(), parameters })
    }

    pub(super) fn uses(&self, parameter: Parameter) -> bool {
        self.parameters.contains(&parameter)
    }

    /// Returns true if the query names an address that can be written in two forms.
    pub(super) fn has_two_forms(&self, question: &SessionQuestion) -> bool {
        self.uses(Parameter::Ip) && matches!(question.ip, Some(IpAddr::V4(_)))
    }

    /// Returns the values for the `?`, in order. `user` is empty for a session's query, which does not use it.
    pub(super) fn values(&self, question: &SessionQuestion, user: &str, form: AddressForm) -> Vec<Value> {
        self.parameters
            .iter()
            .map(|parameter| match parameter {
                Parameter::Session => question.session.as_str().into(),
                Parameter::User => user.into(),
                Parameter::Ip if form == AddressForm::Canonical => question.ip.map(|ip| ip.to_string()).into(),
                Parameter::Ip | Parameter::Ip6 => question.ip.map(mapped).into(),
                Parameter::Agent => question.agent.as_deref().into(),
            })
            .collect()
    }
}

/// Returns the address in the form of IPv6.
fn mapped(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_string(),
        IpAddr::V6(ip) => ip.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Parameter::*, *};

    #[test]
    fn a_question_mark_is_the_subject() {
        let sql = "SELECT user, expires FROM sessions WHERE id = ?";
        assert_eq!(Query::session(sql).unwrap(), Query { sql: sql.into(), parameters: vec![Session] });
        assert_eq!(Query::groups("SELECT name FROM g WHERE user = ?").unwrap().parameters, [User]);
    }

    #[test]
    fn names_are_replaced_in_order() {
        let query = Query::session("SELECT u FROM s WHERE id = :session AND ip = :ip AND agent = :agent").unwrap();
        assert_eq!(query.sql, "SELECT u FROM s WHERE id = ? AND ip = ? AND agent = ?");
        assert_eq!(query.parameters, [Session, Ip, Agent]);
        assert!(query.uses(Ip) && !query.uses(User));
        let query = Query::groups("SELECT g FROM m WHERE user = :id AND session = :session AND user = :user").unwrap();
        assert_eq!(query.parameters, [User, Session, User]);
    }

    #[test]
    fn quotes_and_comments_hold_no_names() {
        let sql = r#"SELECT ':ip', "a\":agent", `:x` FROM s /* :y ' */ WHERE id = :id # :z"#;
        let query = Query::session(sql).unwrap();
        assert_eq!(query.sql, sql.replace(":id", "?"));
        assert_eq!(query.parameters, [Session]);
    }

    #[test]
    fn values_stand_in_the_order_of_the_parameters() {
        let query =
            Query::groups("SELECT g FROM m WHERE a = :agent AND u = :user AND i = :ip AND s = :session").unwrap();
        let question = SessionQuestion { session: "s1".into(), ip: Some("::1".parse().unwrap()), agent: None };
        let values = query.values(&question, "7", AddressForm::Canonical);
        assert_eq!(values, [Value::NULL, "7".into(), "::1".into(), "s1".into()]);
    }

    #[test]
    fn an_ipv4_address_has_two_forms() {
        let query = Query::session("SELECT u FROM s WHERE id = :id AND (ip = :ip OR ip = :ip6)").unwrap();
        let question = |ip: &str| SessionQuestion { session: "s".into(), ip: ip.parse().ok(), agent: None };
        for (ip, form, ip4, ip6) in [
            ("1.2.3.4", AddressForm::Canonical, "1.2.3.4", "::ffff:1.2.3.4"),
            ("1.2.3.4", AddressForm::Mapped, "::ffff:1.2.3.4", "::ffff:1.2.3.4"),
            ("2001:db8::1", AddressForm::Canonical, "2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(query.values(&question(ip), "", form), ["s".into(), ip4.into(), ip6.into()] as [Value; 3]);
        }
        assert!(query.has_two_forms(&question("1.2.3.4")));
        assert!(!query.has_two_forms(&question("::1")) && !query.has_two_forms(&question("")));
        let only6 = Query::session("SELECT u FROM s WHERE id = :id AND ip = :ip6").unwrap();
        assert!(!only6.has_two_forms(&question("1.2.3.4")));
    }

    #[test]
    fn a_query_that_cannot_tell_sessions_apart_is_refused() {
        for sql in ["SELECT user FROM sessions", "SELECT user FROM sessions WHERE ip = :ip", ""] {
            assert!(matches!(Query::session(sql), Err(SessionTableError::NoParameter { .. })), "{sql}");
        }
        assert!(matches!(Query::groups("SELECT g FROM m"), Err(SessionTableError::NoParameter { .. })));
        assert!(matches!(Query::session("id = ? AND ip = :ip"), Err(SessionTableError::MixedParameters { .. })));
        for sql in ["id = :sid", "id = :session AND user = :user"] {
            assert!(matches!(Query::session(sql), Err(SessionTableError::UnknownParameter { .. })), "{sql}");
        }
    }
}
