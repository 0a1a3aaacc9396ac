use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::*;

const ADDRESS: &str = "https://issuer.example/keys";

/// An issuer whose keys have these names; without any it is away.
#[derive(Clone, Default)]
struct Issuer(Arc<(Mutex<Vec<&'static str>>, AtomicUsize)>);

impl Issuer {
    fn has(&self, names: &[&'static str]) {
        *self.0.0.lock() = names.to_vec();
    }

    fn asked(&self) -> usize {
        self.0.1.load(Ordering::Relaxed)
    }
}

impl Source for Issuer {
    async fn fetch(&self, uri: &Uri) -> Result<Bytes, String> {
        assert_eq!(uri.to_string(), ADDRESS);
        self.0.1.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let names = self.0.0.lock().clone();
        if names.is_empty() {
            return Err("away".into());
        }
        let key = |name| json!({"kty": "OKP", "crv": "Ed25519", "kid": name, "x": "AA"});
        let keys: Vec<_> = names.into_iter().map(key).collect();
        Ok(json!({"keys": keys}).to_string().into())
    }
}

fn pass(time: Duration) -> impl Future<Output = ()> {
    tokio::time::sleep(time)
}

async fn has(set: &Arc<KeySet>, issuer: &Issuer, name: &str) -> Option<bool> {
    let keys = set.keys(issuer, Some(name)).await?;
    Some(keys.may_have(Some(name)))
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_found_at_once_and_nobody_makes_the_issuer_be_asked_all_the_time() {
    let (issuer, sets) = (Issuer::default(), KeySets::default());
    let set = sets.at(ADDRESS).unwrap();
    issuer.has(&["a"]);
    assert_eq!(has(&set, &issuer, "a").await, Some(true));
    for _ in 0..10 {
        assert_eq!(has(&set, &issuer, "a").await, Some(true));
    }
    assert_eq!(issuer.asked(), 1);
    // Rotation: the first token with the new key has it fetched.
    pass(PAUSE).await;
    issuer.has(&["a", "b"]);
    assert_eq!(has(&set, &issuer, "b").await, Some(true));
    assert_eq!(issuer.asked(), 2);
    // A name that there is not: one attempt in each pause, by whomever.
    for _ in 0..100 {
        assert_eq!(has(&set, &issuer, "forged").await, Some(false));
    }
    assert_eq!(issuer.asked(), 2);
    pass(PAUSE).await;
    let together: Vec<_> = (0..10)
        .map(|_| {
            let (set, issuer) = (set.clone(), issuer.clone());
            tokio::spawn(async move { has(&set, &issuer, "forged").await })
        })
        .collect();
    for found in together {
        assert_eq!(found.await.unwrap(), Some(false));
    }
    assert_eq!(issuer.asked(), 3);
    // What is withdrawn is gone when the keys are next fetched.
    issuer.has(&["b"]);
    pass(REFRESH).await;
    assert_eq!(has(&set, &issuer, "a").await, Some(true));
    pass(PAUSE).await;
    assert_eq!(has(&set, &issuer, "a").await, Some(false));
}

#[tokio::test(start_paused = true)]
async fn the_last_good_keys_outlive_an_outage_until_their_bound() {
    let (issuer, sets) = (Issuer::default(), KeySets::default());
    let set = sets.at(ADDRESS).unwrap();
    // Away from the beginning: there are none, and the issuer is not asked for each request.
    for _ in 0..5 {
        assert_eq!(has(&set, &issuer, "a").await, None);
    }
    assert_eq!(issuer.asked(), 1);
    pass(PAUSE).await;
    issuer.has(&["a"]);
    assert_eq!(has(&set, &issuer, "a").await, Some(true));
    issuer.has(&[]);
    pass(KEPT - Duration::from_secs(60)).await;
    assert_eq!(has(&set, &issuer, "a").await, Some(true));
    // Another rule on the same address has them, too.
    let other = sets.at(ADDRESS).unwrap();
    assert!(Arc::ptr_eq(&set, &other));
    pass(Duration::from_secs(120)).await;
    assert_eq!(has(&set, &issuer, "a").await, None);
    issuer.has(&["a"]);
    pass(PAUSE).await;
    assert_eq!(has(&set, &issuer, "a").await, Some(true));
}

#[test]
fn an_address_is_one_of_http() {
    let sets = KeySets::default();
    for bad in ["", "issuer", "ftp://a/b", "https://user@a/b", "file:///a"] {
        assert!(sets.at(bad).is_err(), "{bad}");
    }
    assert!(
        sets.at("http://issuer.shop.svc.cluster.local:8080/keys?x=y")
            .is_ok()
    );
}

#[tokio::test]
async fn a_set_is_fetched_by_tls_from_who_proves_to_be_the_issuer_and_not_without_end() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("roots.pem");
    let own = rcgen::generate_simple_self_signed(vec!["issuer.example".to_owned()]).unwrap();
    std::fs::write(&roots, own.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    // What the issuer answers, and what is made of it; by the name that is asked for.
    let exchange = async |name: &'static str, answer: String| {
        let (near, far) = tokio::io::duplex(64 << 10);
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A client that doesn't trust it goes.
            let Ok(mut stream) = acceptor.accept(far).await else {
                return;
            };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
        let connector = TlsConnector::from(Arc::new(tls(&roots).unwrap()));
        let name = ServerName::try_from(name).unwrap();
        let stream = connector.connect(name, near).await;
        let stream = stream.map_err(|error| error.to_string())?;
        get(stream, &ADDRESS.parse().unwrap()).await
    };
    let answer = |status: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    let good = exchange("issuer.example", answer("200 OK", "keys")).await;
    assert_eq!(good.unwrap(), "keys");
    let other = exchange("other.example", answer("200 OK", "keys")).await;
    assert!(other.unwrap_err().contains("certificate"));
    let moved = answer("302 Found\r\nlocation: https://evil/", "keys");
    assert!(
        exchange("issuer.example", moved)
            .await
            .unwrap_err()
            .contains("302")
    );
    let long = answer("200 OK", &"a".repeat(MAX_BODY + 1));
    assert!(
        exchange("issuer.example", long)
            .await
            .unwrap_err()
            .contains("too long")
    );
    assert!(tls(&folder.path().join("none")).is_err());
}
