use super::*;

fn claims() -> Claims {
    let now = jiff::Timestamp::now().as_second();
    Claims {
        aud: vec![ISSUER.into()],
        exp: now + 600,
        iat: now,
        iss: ISSUER.into(),
        jti: "j".into(),
        bound: Bound {
            namespace: "n".into(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: Reference { name: "a".into(), uid: "u".into() },
        },
        nbf: now,
        sub: "system:serviceaccount:n:a".into(),
    }
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[test]
fn only_what_this_key_signed_for_this_audience_and_time_is_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sa.key");
    let tokens = Tokens::open(&path).expect("a key");
    let again = Tokens::open(&path).expect("the same key");
    let other = Tokens::open(&dir.path().join("other.key")).expect("another key");
    let here = [ISSUER.to_string()];
    let token = tokens.sign(&claims()).expect("a token");
    let known = |tokens: &Tokens, token: &str| tokens.claims(token, &here);
    assert_eq!(known(&tokens, &token).map(|claims| claims.sub), Some(claims().sub));
    assert!(known(&tokens, &token).is_some(), "remembered");
    assert!(known(&again, &token).is_some());
    assert_eq!(known(&other, &token), None);
    assert_eq!(tokens.claims(&token, &["https://elsewhere".to_string()]), None);

    let now = jiff::Timestamp::now().as_second();
    for wrong in [
        Claims { exp: now - 61, ..claims() },
        Claims { nbf: now + 120, ..claims() },
        Claims { iss: "https://elsewhere".into(), ..claims() },
        Claims { aud: vec!["https://elsewhere".into()], ..claims() },
        Claims { aud: Vec::new(), ..claims() },
    ] {
        let token = tokens.sign(&wrong).expect("a token");
        assert_eq!(known(&tokens, &token), None, "{wrong:?}");
        assert_eq!(known(&tokens, &token), None, "{wrong:?}, remembered");
    }
    let mut parts = token.split('.');
    let (head, body, signature) =
        (parts.next().expect("a head"), parts.next().expect("a body"), parts.next().expect("a signature"));
    let more = part(&json!({"sub": "system:serviceaccount:kube-system:a", "exp": now + 600}));
    let none = part(&json!({"alg": "none"}));
    let mac = part(&json!({"alg": "HS256"}));
    let zero = URL_SAFE_NO_PAD.encode([0; 64]);
    for forged in [
        format!("{head}.{more}.{signature}"),
        format!("{none}.{body}."),
        format!("{none}.{body}.{signature}"),
        format!("{mac}.{body}.{signature}"),
        format!("{head}.{body}.{zero}"),
        format!("{head}.{body}."),
        format!("{head}.{body}.{signature}="),
        format!("{head}.{body}.{}", &signature[..signature.len() - 2]),
        "..".into(),
        "a.b.c".into(),
    ] {
        assert_eq!(known(&tokens, &forged), None, "{forged}");
    }
    assert!(!Tokens::is_one("abcdef.0123456789abcdef"), "a bootstrap token is another kind");
}
