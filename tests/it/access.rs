//! Who is let in, how somebody signs in, and what a browser that shows another site's page can't do.

use callsheet::domain::JobStatus;
use sha2::{Digest, Sha256};

use crate::on_each_database;
use crate::support::client::Answer;
use crate::support::eventually;
use crate::support::service::{On, Service};

const FLOWS: &str = "[flows.ONE]\n{job}\n";
const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

/// A service with a viewer's token `see-everything` and an operator's `do-everything`.
async fn with_tokens(on: On) -> Option<Service> {
    let mut service = Service::prepare(on, FLOWS).await?;
    let hash = |token: &str| Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    service.configure(&format!(
        "[[http.tokens]]\nname = \"eye\"\nrole = \"viewer\"\ntoken_sha256 = \"{}\"\n\
         [[http.tokens]]\nname = \"ops\"\nrole = \"operator\"\ntoken_sha256 = \"{}\"\n",
        hash("see-everything"),
        hash("do-everything")
    ));
    service.serve().await;
    Some(service)
}

const VIEWER: &str = "Authorization: Bearer see-everything";
const OPERATOR: &str = "Authorization: Bearer do-everything";

fn sign_in(service: &Service, token: &str) -> Answer {
    service.request("POST", "/sign-in", &[FORM], format!("token={token}&next=%2Fjobs").as_bytes())
}

/// The cookie of a sign-in, as a browser sends it back.
fn session(service: &Service, token: &str) -> String {
    let answer = sign_in(service, token);
    assert_eq!((answer.status, answer.header("location")), (303, Some("/jobs")), "{}", answer.text());
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.contains("; HttpOnly; SameSite=Strict") && !cookie.contains("Secure"), "{cookie}");
    format!("Cookie: {}", cookie.split(';').next().unwrap())
}

async fn without_a_token_nobody_is_let_in(on: On) {
    let Some(service) = with_tokens(on).await else { return };
    assert_eq!(service.get("/healthz").status, 200);
    assert_eq!(service.get("/readyz").status, 200);
    let refused = service.get("/metrics");
    assert!(refused.problem(401).contains("Authorization: Bearer"));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"callsheet\""));
    service.request("GET", "/metrics", &["Authorization: Bearer wrong"], b"").problem(401);
    service.request("GET", "/metrics", &["Authorization: Basic b3BzOng="], b"").problem(401);
    for token in [VIEWER, OPERATOR] {
        assert_eq!(service.request("GET", "/metrics", &[token], b"").status, 200);
    }
    let page = service.get("/?a=b");
    assert_eq!((page.status, page.header("location")), (303, Some("/sign-in?next=%2F%3Fa%3Db")));
    assert!(service.get("/sign-in").text().contains("type=\"password\""));
    assert!(!service.log().contains("everything"), "a token stands in the log");
}
on_each_database!(without_a_token_nobody_is_let_in);

async fn a_session_lasts_over_a_restart_until_somebody_signs_out(on: On) {
    let Some(mut service) = with_tokens(on).await else { return };
    let refused = sign_in(&service, "wrong");
    assert!(refused.status == 401 && refused.header("set-cookie").is_none());
    assert!(refused.text().contains("nobody has this token"));
    let cookie = session(&service, "do-everything");
    assert_eq!(service.request("GET", "/", &[&cookie], b"").status, 200);
    service.stop().await;
    service.serve().await;
    assert_eq!(service.request("GET", "/", &[&cookie], b"").status, 200);
    // Without what only a page of ours knows, nobody signs them out.
    service.request("POST", "/sign-out", &[FORM, &cookie], b"csrf=0123").problem(403);
    assert_eq!(service.request("GET", "/", &[&cookie], b"").status, 200);
    let csrf = service.csrf(&cookie);
    let out = service.request("POST", "/sign-out", &[FORM, &cookie], format!("csrf={csrf}").as_bytes());
    assert_eq!(out.status, 303, "{}", out.text());
    assert!(out.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(service.request("GET", "/", &[&cookie], b"").status, 303);
    let rows =
        service.store.audit(&callsheet::store::AuditFilter { limit: 10, ..Default::default() }).await.unwrap().rows;
    let deeds: Vec<_> =
        rows.iter().map(|row| (row.actor.as_str(), row.action.as_str(), row.outcome.as_str())).collect();
    let refusal = ("unknown", "sign_in", "refused: nobody has this token");
    assert_eq!(deeds, [("ops", "sign_out", "done"), ("ops", "sign_in", "done"), refusal]);
    assert!(rows.iter().all(|row| row.via == "page" && row.address.as_deref() == Some("127.0.0.1")));
}
on_each_database!(a_session_lasts_over_a_restart_until_somebody_signs_out, mariadb);

async fn a_viewer_reads_and_an_operator_writes(on: On) {
    let Some(service) = with_tokens(on).await else { return };
    let json = "Content-Type: application/json";
    let job = br#"{"type": "ONE", "identifier": "say:a"}"#;
    let post = |headers: &[&str]| service.request("POST", "/api/v1/jobs", headers, job);
    post(&[json]).problem(401);
    assert!(post(&[json, VIEWER]).problem(403).contains("\"eye\" is a viewer's"));
    assert_eq!(post(&[json, OPERATOR]).status, 201);
    service.request("GET", "/api/v1/jobs", &[], b"").problem(401);
    assert_eq!(service.request("GET", "/api/v1/jobs", &[VIEWER], b"").status, 200);
    assert_eq!(service.get("/api/openapi.json").status, 200);
    // The page's own script may too, if it knows what only our pages know.
    let cookie = session(&service, "do-everything");
    assert_eq!(service.request("GET", "/api/v1/jobs", &[&cookie], b"").status, 200);
    post(&[json, &cookie]).problem(403);
    let csrf = service.csrf(&cookie);
    assert_eq!(post(&[json, &cookie, &format!("X-CSRF-Token: {csrf}")]).status, 201);
    let watcher = session(&service, "see-everything");
    let csrf = service.csrf(&watcher);
    assert!(post(&[json, &watcher, &format!("X-CSRF-Token: {csrf}")]).problem(403).contains("viewer"));
    let rows =
        service.store.audit(&callsheet::store::AuditFilter { limit: 10, ..Default::default() }).await.unwrap().rows;
    let deeds: Vec<_> = rows.iter().map(|row| (row.actor.as_str(), row.via.as_str(), row.action.as_str())).collect();
    let expected =
        [("eye", "page", "sign_in"), ("ops", "api", "enqueue"), ("ops", "page", "sign_in"), ("ops", "api", "enqueue")];
    assert_eq!(deeds, expected);
}
on_each_database!(a_viewer_reads_and_an_operator_writes);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_guesses_tokens_is_made_to_wait() {
    let service = with_tokens(On::Sqlite).await.unwrap();
    for _ in 0..10 {
        assert_eq!(sign_in(&service, "guess").status, 401);
    }
    // The right one too, or one could go on guessing.
    let waiting = sign_in(&service, "do-everything");
    assert_eq!(waiting.status, 429);
    let seconds: u32 = waiting.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    // A program that has a right token does not suffer from others that have not.
    assert_eq!(service.request("GET", "/metrics", &[VIEWER], b"").status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_changed_takes_its_sessions_along() {
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    service.configure("[[http.tokens]]\nname = \"ops\"\nrole = \"operator\"\ntoken_env = \"CALLSHEET_TEST_TOKEN\"\n");
    let unset = service.cli(&["serve"]);
    assert_eq!(unset.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unset.stderr).contains("CALLSHEET_TEST_TOKEN"));
    service.serve_with(&[("CALLSHEET_TEST_TOKEN", "first")]).await;
    let cookie = session(&service, "first");
    assert_eq!(service.request("GET", "/", &[&cookie], b"").status, 200);
    service.stop().await;
    service.serve_with(&[("CALLSHEET_TEST_TOKEN", "second")]).await;
    assert_eq!(service.request("GET", "/", &[&cookie], b"").status, 303);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_sites_get_nothing() {
    let service = Service::start(On::Sqlite, FLOWS).await.unwrap();
    for host in ["localhost", "127.0.0.1:9", "[::1]:8440"] {
        assert_eq!(service.request("GET", "/metrics", &[&format!("Host: {host}")], b"").status, 200, "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1"] {
        let refused = service.request("GET", "/metrics", &[&format!("Host: {host}")], b"");
        assert!(refused.problem(403).contains("name of this machine"), "{host}");
    }
    let address = service.address();
    let own = format!("Origin: http://{address}");
    assert_eq!(service.request("GET", "/", &[&own], b"").status, 200);
    for origin in ["http://evil.example", "null", "http://localhost:1", "nonsense"] {
        service.request("GET", "/", &[&format!("Origin: {origin}")], b"").problem(403);
        service.request("POST", "/sign-out", &[FORM, &format!("Origin: {origin}")], b"csrf=x").problem(403);
    }
    service.request("POST", "/sign-out", &[FORM, "Sec-Fetch-Site: cross-site"], b"csrf=x").problem(403);
    // And a form that knows where it is, but not what only our pages know.
    service.request("POST", "/sign-out", &[FORM, &own], b"csrf=x").problem(403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_the_security_headers() {
    let service = Service::start(On::Sqlite, FLOWS).await.unwrap();
    let job = service.insert("ONE", &["say:a"]).await[0];
    service.until(job, JobStatus::Completed).await;
    for path in ["/", "/healthz", "/metrics", "/nothing"] {
        let answer = service.get(path);
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "same-origin"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_taken_from_the_configuration_when_it_is_read_again() {
    let service = with_tokens(On::Sqlite).await.unwrap();
    let ops = session(&service, "do-everything");
    let jobs = |header: &str| service.request("GET", "/api/v1/jobs", &[header], b"").status;
    let mut stream = service.events("/api/v1/events", &[VIEWER]);
    let config = std::fs::read_to_string(service.path("callsheet.toml")).unwrap();
    let reload = async |config: &str, says: &str| {
        std::fs::write(service.path("callsheet.toml"), config).unwrap();
        let before = service.log().matches("the configuration was read again").count();
        service.signal(rustix::process::Signal::HUP);
        eventually("the configuration to be read", async || {
            service.log().matches("the configuration was read again").count() > before
        })
        .await;
        assert!(service.log().contains(says), "{says} is not in {}", service.log());
    };
    let hash = |token: &str| Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    // The viewer's has another value, the operator's is a viewer's from now on, and there is a third.
    let new =
        config.replace(&hash("see-everything"), &hash("another")).replace("role = \"operator\"", "role = \"viewer\"")
            + &format!("[[http.tokens]]\nname = \"new\"\nrole = \"operator\"\ntoken_sha256 = \"{}\"\n", hash("newest"));
    reload(&new, "configuration: token ops: operator -> viewer").await;
    assert!(service.log().contains("token eye: another value") && service.log().contains("token new: added, operator"));
    assert_eq!(
        (jobs(VIEWER), jobs("Authorization: Bearer another"), jobs("Authorization: Bearer newest")),
        (401, 200, 200)
    );
    let post = |header: &str| service.request("POST", "/api/v1/jobs/1/cancel", &[header], b"").status;
    assert_eq!((post(OPERATOR), post("Authorization: Bearer newest")), (403, 404));
    assert_eq!(service.request("GET", "/", &[&ops], b"").status, 200, "its session goes on, as a viewer's");
    assert!(!service.request("GET", "/", &[&ops], b"").text().contains("Enqueue jobs"));
    assert_eq!(stream.next(), None, "whoever listens has to show again that they may");
    // Somebody has to mean it that everybody may do everything.
    let without = config.split("[[http.tokens]]").next().unwrap();
    reload(without, "[[http.tokens]] is different in the file; it holds from the next start").await;
    assert_eq!((service.get("/api/v1/jobs").status, jobs("Authorization: Bearer newest")), (401, 200));
    assert!(!service.log().contains("newest"), "a token stands in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_can_be_replaced_while_the_service_runs() {
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    let certificates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
    let scratch = service.scratch.path().to_owned();
    // Renamed into place, so that nobody reads half of it.
    let replace = |from: &str, to: &str| {
        std::fs::copy(certificates.join(from), scratch.join("new")).unwrap();
        std::fs::rename(scratch.join("new"), scratch.join(to)).unwrap();
    };
    let put = |name: &str| {
        replace(&format!("{name}.pem"), "tls.pem");
        replace(&format!("{name}.key.pem"), "tls.key.pem");
    };
    put("first");
    let config = std::fs::read_to_string(service.path("callsheet.toml")).unwrap();
    let tls = "[http]\ntls = { certificate = \"tls.pem\", key = \"tls.key.pem\" }\n";
    std::fs::write(service.path("callsheet.toml"), config.replace("[http]\n", tls)).unwrap();
    let config = service.path("callsheet.toml");
    std::fs::write(service.path("tls.key.pem"), "nonsense").unwrap();
    let refused = service.cli(&["serve"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("tls.key.pem for TLS (http.tls)"), "{text}");
    let checked = service.cli(&["check"]);
    let text = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(config.exists() && !checked.status.success(), "{text}");
    assert!(text.contains("callsheet.toml:4:40: can't use") && text.contains("tls.key.pem"), "{text}");
    put("first");
    service.serve().await;
    let (certificate, answer) = over_tls(&service.address()).await;
    assert_eq!(certificate, pem(&certificates.join("first.pem")));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("strict-transport-security: max-age"), "{answer}");
    // Our own commands ask it so, too, and trust the one certificate that the configuration names.
    let asked = |arguments: &[&str]| {
        let output = service.cli(arguments);
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    assert_eq!(asked(&["check", "--ready"]), (Some(0), "ready\n".to_owned()));
    let (code, actors) = asked(&["actors"]);
    assert!(code == Some(0) && actors.contains("dispatcher"), "{actors}");
    // Over plain HTTP nothing is said.
    let mut plain = std::net::TcpStream::connect(service.address()).unwrap();
    std::io::Write::write_all(&mut plain, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut said = Vec::new();
    std::io::Read::read_to_end(&mut plain, &mut said).ok();
    assert!(!said.starts_with(b"HTTP"));
    // One of the two files alone fits nothing, and the old certificate stays.
    replace("second.pem", "tls.pem");
    eventually("a word about it", async || service.log().contains("the old one is kept")).await;
    assert_eq!(over_tls(&service.address()).await.0, certificate);
    let (code, text) = asked(&["check", "--ready"]);
    assert!(code == Some(1) && text.contains("another certificate"), "{text}");
    replace("second.key.pem", "tls.key.pem");
    eventually("the new certificate", async || {
        over_tls(&service.address()).await.0 == pem(&certificates.join("second.pem"))
    })
    .await;
    assert_eq!(asked(&["check", "--ready"]).0, Some(0));
}

fn pem(path: &std::path::Path) -> Vec<u8> {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    tokio_rustls::rustls::pki_types::CertificateDer::from_pem_file(path).unwrap().to_vec()
}

/// The certificate that a client is shown, and the answer to its request.
async fn over_tls(address: &str) -> (Vec<u8>, String) {
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

    /// Takes every certificate: which it is, the test looks at itself.
    #[derive(Debug)]
    struct Anybody;

    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let supported = &ring::default_provider().signature_verification_algorithms;
            tokio_rustls::rustls::crypto::verify_tls12_signature(message, certificate, signature, supported)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let supported = &ring::default_provider().signature_verification_algorithms;
            tokio_rustls::rustls::crypto::verify_tls13_signature(message, certificate, signature, supported)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            ring::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }

    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    (certificate, String::from_utf8_lossy(&answer).into_owned())
}
