//! Tokens of every kind, valid and malformed.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{EncodingKey, encode};
use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::TrustedProxies;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "another secret of more than thirty-two bytes";

fn handshake(headers: &[(&str, &str)]) -> Handshake {
    let request = headers.iter().fold(http::Request::get("/"), |request, (name, value)| request.header(*name, *value));
    Handshake::new(&request.body(()).unwrap().into_parts().0, None, &TrustedProxies::none())
}

fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

fn signed(claims: &Value, secret: &str) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn with_secret() -> JwtAuthenticator {
    JwtAuthenticator::new().secret(SECRET).unwrap()
}

/// Returns the identity of a token in `Client/authentication`.
async fn identity(authenticator: &JwtAuthenticator, token: impl Into<Value>) -> Option<Identity> {
    let credentials = [token.into()];
    let answer = authenticator.authenticate(&handshake(&[]), Some(Credentials(&credentials))).await;
    answer.expect("an answer")
}

#[tokio::test]
async fn the_claims_say_who_a_client_is_and_for_how_long() {
    let exp = now() + 60;
    let claims = json!({"sub": "ann", "exp": exp, "sid": "s-1", "groups": ["editors", 7], "name": "ignored"});
    let known = identity(&with_secret(), signed(&claims, SECRET)).await.expect("an identity");
    let wanted = Identity::user("ann").session("s-1").groups(["editors", "7"]);
    assert_eq!(known, wanted.expires(UNIX_EPOCH + Duration::from_secs(exp)));
    let number = identity(&with_secret(), signed(&json!({"sub": 42, "exp": exp}), SECRET)).await;
    assert_eq!(number.and_then(|identity| identity.user).as_deref(), Some("42"));
}

#[tokio::test]
async fn a_token_comes_in_a_header_a_subprotocol_a_cookie_or_a_message() {
    let authenticator = with_secret().cookie("token");
    let token = signed(&json!({"sub": "ann", "exp": now() + 60}), SECRET);
    for (name, value) in [
        ("authorization", format!("Bearer {token}")),
        ("sec-websocket-protocol", format!("ws-cluster.v1, bearer.{token}")),
        ("cookie", format!("a=b; token={token}")),
    ] {
        let answer = authenticator.authenticate(&handshake(&[(name, &value)]), None).await;
        assert_eq!(answer.unwrap().and_then(|identity| identity.user).as_deref(), Some("ann"), "{name}");
    }
    assert!(authenticator.uses_cookies() && authenticator.in_band());
    assert!(!with_secret().uses_cookies());
    let cookie = format!("token={token}");
    let without = with_secret().authenticate(&handshake(&[("cookie", &cookie)]), None).await;
    assert_eq!(without.unwrap(), None, "no cookie was named");
    // Credentials win over the handshake: they are newer.
    let wrong = [json!("rubbish")];
    let answer = authenticator.authenticate(&handshake(&[("cookie", &cookie)]), Some(Credentials(&wrong))).await;
    assert_eq!(answer.unwrap(), None);
}

#[tokio::test]
async fn a_token_counts_from_its_beginning_to_its_end_and_the_leeway() {
    let authenticator = with_secret().leeway(Duration::from_secs(10));
    for (claims, valid) in [
        (json!({"exp": now() + 1}), true),
        (json!({"exp": now() - 5}), true),
        (json!({"exp": now() - 20}), false),
        (json!({"exp": now() + 60, "nbf": now() + 5}), true),
        (json!({"exp": now() + 60, "nbf": now() + 30}), false),
        (json!({"exp": now() as f64 + 0.5}), true),
        (json!({"exp": 1e300}), false),
        (json!({"exp": -1}), false),
        (json!({"exp": "9999999999"}), false),
        (json!({"exp": null}), false),
        (json!({}), false),
    ] {
        let mut claims = claims;
        claims["sub"] = "ann".into();
        let known = identity(&authenticator, signed(&claims, SECRET)).await;
        assert_eq!(known.is_some(), valid, "{claims}");
        if let Some(end) = known.and_then(|identity| identity.expires) {
            assert!(end > SystemTime::now(), "{claims}: ended before it began");
        }
    }
}

#[tokio::test]
async fn issuer_and_audience_have_to_match_once_they_are_set() {
    let plain = with_secret();
    let strict = with_secret().issuer("https://a.example").issuer("https://b.example").audience("live");
    for (claims, by_plain, by_strict) in [
        (json!({}), true, false),
        (json!({"iss": "https://a.example"}), true, false),
        (json!({"iss": "https://b.example", "aud": "live"}), false, true),
        (json!({"iss": "https://a.example", "aud": ["other", "live"]}), false, true),
        (json!({"iss": "https://c.example", "aud": "live"}), true, false),
        (json!({"iss": "https://a.example", "aud": "other"}), false, false),
        (json!({"iss": 7, "aud": "live"}), false, false),
        // An audience of a wrong type is one that no server is.
        (json!({"iss": "https://a.example", "aud": 7}), false, false),
        (json!({"iss": "https://a.example", "aud": {}}), false, false),
        (json!({"iss": "https://a.example", "aud": [7]}), false, false),
        (json!({"iss": "https://a.example", "aud": []}), false, false),
        (json!({"iss": "https://a.example", "aud": null}), true, false),
    ] {
        let mut claims = claims;
        (claims["sub"], claims["exp"]) = ("ann".into(), (now() + 60).into());
        let token = signed(&claims, SECRET);
        assert_eq!(identity(&strict, &*token).await.is_some(), by_strict, "strict: {claims}");
        if claims.get("aud").is_none_or(Value::is_null) {
            assert_eq!(identity(&plain, &*token).await.is_some(), by_plain, "plain: {claims}");
        } else {
            assert_eq!(identity(&plain, &*token).await, None, "no audience is set: {claims}");
        }
    }
}

#[tokio::test]
async fn keys_are_rotated_by_giving_several() {
    let both = with_secret().secret(OTHER).unwrap();
    let claims = json!({"sub": "ann", "exp": now() + 60});
    for secret in [SECRET, OTHER] {
        assert!(identity(&both, signed(&claims, secret)).await.is_some());
    }
    assert_eq!(identity(&with_secret(), signed(&claims, OTHER)).await, None);
}

/// Returns a token of these parts, signed with the secret if its header says HS256.
fn assembled(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |json: &Value| BASE64URL_NOPAD.encode(json.to_string().as_bytes());
    format!("{}.{}.{}", part(header), part(claims), BASE64URL_NOPAD.encode(signature))
}

#[tokio::test]
async fn a_malformed_or_forged_token_is_no_identity() {
    let claims = json!({"sub": "ann", "exp": now() + 60});
    let good = signed(&claims, SECRET);
    let [header, body, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let none = |alg: &str| assembled(&json!({"alg": alg, "typ": "JWT"}), &claims, b"");
    let critical = {
        let message = assembled(&json!({"alg": "HS256", "crit": ["exp"]}), &claims, b"");
        let message = message.trim_end_matches('.').to_owned();
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    };
    let texts = [
        String::new(),
        ".".into(),
        "..".into(),
        "a.b.c".into(),
        "a.b.c.d".into(),
        good.replace('.', ""),
        format!("{good}."),
        format!("{good} "),
        format!("{header}.{body}."),
        format!("{header}.{body}.{signature}x"),
        format!("{header}.{body}.{}", &signature[1..]),
        format!("{header}..{signature}"),
        format!("{header}.{header}.{signature}"),
        none("none"),
        none("None"),
        none("HS256"),
        none("RS256"),
        none("PS512"),
        critical,
        assembled(&json!([]), &claims, b""),
        "\u{0}".into(),
        "é".repeat(2_000),
        "x".repeat(TOKEN_SIZE + 1),
        format!("{}.{}.{}", "A".repeat(5_000), "A".repeat(5_000), "A".repeat(5_000)),
    ];
    for text in texts {
        assert_eq!(identity(&with_secret(), &*text).await, None, "{text:.100}");
    }
    assert_eq!(identity(&with_secret(), format!("{good}\n")).await, None);
    for details in [json!(7), json!(null), json!([good]), json!({"token": good})] {
        assert_eq!(identity(&with_secret(), details.clone()).await, None, "{details:.60}");
    }
    for claims in [
        json!({"exp": now() + 60}),
        json!({"exp": now() + 60, "sub": ""}),
        json!({"exp": now() + 60, "sub": null}),
        json!({"exp": now() + 60, "sub": 1.5}),
        json!({"exp": now() + 60, "sub": ["ann"]}),
        json!({"exp": now() + 60, "sub": "ann", "sid": true}),
        json!({"exp": now() + 60, "sub": "ann", "groups": "editors"}),
        json!({"exp": now() + 60, "sub": "ann", "groups": [null]}),
        json!([1]),
        json!("ann"),
    ] {
        assert_eq!(identity(&with_secret(), signed(&claims, SECRET)).await, None, "{claims}");
    }
    assert!(identity(&with_secret(), good).await.is_some(), "the good one still counts");
}

/// The key of RFC 8037, appendix A, with its PEM form.
const ED_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
    -----END PUBLIC KEY-----\n";
const ED_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
    -----END PRIVATE KEY-----\n";
const ED_SET: &str = r#"{"keys": [
    {"kty": "OKP", "crv": "Ed25519", "kid": "key-1", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
]}"#;

fn signed_by_ed(id: Option<&str>) -> String {
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = id.map(str::to_owned);
    let claims = json!({"sub": "ann", "exp": now() + 60});
    encode(&header, &claims, &EncodingKey::from_ed_pem(ED_PRIVATE.as_bytes()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_public_key_verifies_its_own_algorithm_only() {
    let authenticator = JwtAuthenticator::new().public_key(ED_PUBLIC).unwrap();
    assert!(identity(&authenticator, signed_by_ed(None)).await.is_some());
    // Key confusion: the public key, which anyone can have, as the secret of HS256.
    let confused = signed(&json!({"sub": "ann", "exp": now() + 60}), ED_PUBLIC);
    assert_eq!(identity(&authenticator, confused).await, None);
}

/// Returns what OpenSSL makes of this input.
fn openssl(arguments: &[&str], input: &str) -> String {
    use std::{io::Write, process};
    let mut command = process::Command::new("openssl");
    let command = command.args(arguments).stdin(process::Stdio::piped()).stdout(process::Stdio::piped());
    let mut running = command.stderr(process::Stdio::null()).spawn().expect("openssl");
    running.stdin.take().expect("piped").write_all(input.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn keys_of_openssl_verify_tokens() {
    let claims = json!({"sub": "ann", "exp": now() + 60});
    let rsa = openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "");
    let ec = openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], "");
    let by_rsa = EncodingKey::from_rsa_pem(rsa.as_bytes()).unwrap();
    let by_ec = EncodingKey::from_ec_pem(ec.as_bytes()).unwrap();
    let public = |private: &str| openssl(&["pkey", "-pubout"], private);
    let authenticator = JwtAuthenticator::new().public_key(public(&rsa)).unwrap().public_key(public(&ec)).unwrap();
    for (algorithm, key, valid) in [
        (Algorithm::RS256, &by_rsa, true),
        (Algorithm::ES256, &by_ec, true),
        // The key would do, but these algorithms are not spoken.
        (Algorithm::RS512, &by_rsa, false),
        (Algorithm::PS256, &by_rsa, false),
    ] {
        let token = encode(&Header::new(algorithm), &claims, key).unwrap();
        assert_eq!(identity(&authenticator, token).await.is_some(), valid, "{algorithm:?}");
    }
    let other = openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], "");
    let refused = JwtAuthenticator::new().public_key(public(&other)).expect_err("a refusal").to_string();
    assert!(refused.contains("only P-256"), "{refused}");
}

#[tokio::test]
async fn a_published_key_is_found_by_its_id() {
    let published = || JwtAuthenticator::new().jwks("the test", || Box::pin(async { Ok(ED_SET.into()) }));
    let authenticator = published();
    assert!(identity(&authenticator, signed_by_ed(Some("key-1"))).await.is_some());
    assert!(identity(&authenticator, signed_by_ed(None)).await.is_some());
    assert_eq!(identity(&published(), signed_by_ed(Some("key-2"))).await, None);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, ED_SET).unwrap();
    let authenticator = JwtAuthenticator::new().jwks_file(file.path());
    assert!(identity(&authenticator, signed_by_ed(Some("key-1"))).await.is_some());

    // Nothing is known of the token, so its client comes again.
    let missing = JwtAuthenticator::new().jwks_file("/nowhere/keys.json");
    let credentials = [signed_by_ed(None).into()];
    let answer = missing.authenticate(&handshake(&[]), Some(Credentials(&credentials))).await;
    assert!(matches!(answer, Err(AuthenticationError::Unavailable(_))), "{answer:?}");
}

/// Another key of Ed25519 (RFC 8032, section 7.1).
const OTHER_ED: &str = "PUAXw-hDiVqStwqnTRt-vJyYLM8uxJaMwM1V8Sr0Zgw";

#[tokio::test(start_paused = true)]
async fn a_key_that_was_published_since_the_last_read_is_found_whatever_its_id_is() {
    let key = |id: &str, x: &str| format!(r#"{{"keys": [{{"kty": "OKP", "crv": "Ed25519", {id} "x": "{x}"}}]}}"#);
    let own = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    let (without, first, second) = ("", r#""kid": "key-1","#, r#""kid": "key-2","#);
    for (before, after, id) in [
        // The set has a key without id, which may be that of any token.
        (without, second, Some("key-2")),
        (without, without, None),
        (first, second, Some("key-2")),
        (first, second, None),
        // The id is the same, and the key is new.
        (first, first, Some("key-1")),
    ] {
        let sets = Arc::new(Mutex::new(vec![key(after, own), key(before, OTHER_ED)]));
        let authenticator = JwtAuthenticator::new().jwks("the test", move || {
            let mut sets = sets.lock();
            let set = if sets.len() > 1 { sets.pop().expect("a set") } else { sets[0].clone() };
            Box::pin(async move { Ok(set.into()) })
        });
        let credentials = [signed_by_ed(id).into()];
        let ask = async || authenticator.authenticate(&handshake(&[]), Some(Credentials(&credentials))).await;
        assert_eq!(ask().await.unwrap(), None, "the set was read for this token");
        let early = ask().await;
        assert!(matches!(early, Err(AuthenticationError::Unavailable(_))), "{early:?}");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(ask().await.unwrap().is_some(), "{before} {after} {id:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_claims_are_refused_causes_no_read() {
    let reads = Arc::new(AtomicUsize::new(0));
    let count = reads.clone();
    let authenticator = JwtAuthenticator::new().audience("live").jwks("the test", move || {
        count.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(ED_SET.into()) })
    });
    for _ in 0..3 {
        // It has no audience.
        assert_eq!(identity(&authenticator, signed_by_ed(Some("key-1"))).await, None);
        // It is over, so it does not matter whose key signed it.
        let by_another =
            EncodingKey::from_ed_pem(openssl(&["genpkey", "-algorithm", "ED25519"], "").as_bytes()).unwrap();
        let over = encode(&Header::new(Algorithm::EdDSA), &json!({"sub": "ann", "exp": now() - 60}), &by_another);
        assert_eq!(identity(&authenticator, over.unwrap()).await, None);
        // A secret is in no set.
        assert_eq!(identity(&authenticator, signed(&json!({"sub": "ann", "exp": now() + 60}), SECRET)).await, None);
        tokio::time::advance(Duration::from_secs(20)).await;
    }
    assert_eq!(reads.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_file_may_have_several_public_keys() {
    let ec = openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], "");
    let both = format!("The old key\n{}\nThe new key\n{ED_PUBLIC}", openssl(&["pkey", "-pubout"], &ec));
    let authenticator = JwtAuthenticator::new().public_key(both).unwrap();
    assert!(identity(&authenticator, signed_by_ed(None)).await.is_some());
    let by_ec = EncodingKey::from_ec_pem(ec.as_bytes()).unwrap();
    let token = encode(&Header::new(Algorithm::ES256), &json!({"sub": "ann", "exp": now() + 60}), &by_ec).unwrap();
    assert!(identity(&authenticator, token).await.is_some());
}

#[test]
fn a_key_that_cannot_verify_is_refused_with_its_reason() {
    let refused = |made: Result<JwtAuthenticator, JwtError>| made.expect_err("a refusal").to_string();
    assert!(refused(JwtAuthenticator::new().secret(" short \n")).contains("this one has 5"));
    for (pem, says) in [
        (ED_PRIVATE, "it is a private key"),
        ("11qYAYKxCrfVS", "it is not PEM"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be used"),
        ("-----BEGIN PUBLIC KEY-----", "cannot be used"),
        (&*format!("{ED_PUBLIC}-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"), "key 2 of 2: "),
        (&*format!("{ED_PUBLIC}{ED_PRIVATE}"), "it is a private key"),
    ] {
        assert!(refused(JwtAuthenticator::new().public_key(pem)).contains(says), "{pem}");
    }
    // Anyone can have the public key, and could sign with it.
    for pem in [ED_PUBLIC, ED_PRIVATE] {
        assert!(refused(JwtAuthenticator::new().secret(format!(" \n{pem}"))).contains("a key in PEM"), "{pem}");
    }
}

#[test]
fn keys_do_not_show() {
    assert!(!format!("{:?}", with_secret()).contains(SECRET));
}
