//! Who is let in, how somebody signs in, and what a browser that shows another site's page can't do.

use callsheet::domain::JobStatus;
use sha2::{Digest, Sha256};

use crate::on_each_database;
use crate::support::client::Answer;
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
    let id = cookie.rsplit_once('=').unwrap().1;
    let csrf: String =
        Sha256::digest(format!("callsheet csrf {id}")).iter().map(|byte| format!("{byte:02x}")).collect();
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
on_each_database!(a_session_lasts_over_a_restart_until_somebody_signs_out);

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
    service.request("GET", "/metrics", &["Authorization: Bearer guess"], b"").problem(429);
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
