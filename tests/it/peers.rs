//! The output of runs of another worker, by way of any of them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use callsheet::domain::{JobId, JobStatus};
use rustix::process::Signal;

use crate::support::eventually;
use crate::support::service::{On, Service};
use crate::support::tools;

const FLOWS: &str = "[flows.GPU]\n{job}\nrequires = [\"gpu\"]\nheartbeat_timeout = \"30s\"\n";
const SECRET: &str = "a secret of the workers, as long as it must be";

impl Service {
    /// What this worker shares with the others.
    fn share(&self, secret: &str) {
        self.share_with(secret, "", "");
    }

    /// The same with more in `peers`, and more in `[http]`.
    fn share_with(&self, secret: &str, more: &str, http: &str) {
        std::fs::write(self.path("peers.secret"), secret).unwrap();
        let config = self.config();
        let peers = format!("[http]\n{http}peers = {{ secret_file = \"peers.secret\"{more} }}\n");
        std::fs::write(self.path("callsheet.toml"), config.replace("[http]\n", &peers)).unwrap();
    }

    fn output(&self, job: JobId, parameters: &str) -> crate::support::client::Answer {
        self.get(&format!("/api/v1/jobs/{job}/logs?{parameters}"))
    }
}

/// One worker that is asked and runs nothing, and one that runs the jobs.
async fn asker_and_runner() -> Option<(Service, Service)> {
    let mut asker = Service::prepare(On::Postgres, FLOWS).await?;
    let mut runner = Service::prepare_at(Some(asker.url.clone()), FLOWS).await;
    runner.configure("worker_id = \"runner\"\nlabels = [\"gpu\"]\n");
    for service in [&mut asker, &mut runner] {
        service.share(SECRET);
        service.serve().await;
    }
    Some((asker, runner))
}

/// A stream of events that is being read.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(service: &Service, path: &str, header: &str) -> Self {
        let mut stream = TcpStream::connect(service.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n{header}Connection: close\r\n\r\n", service.address())
            .unwrap();
        Self(BufReader::new(stream))
    }

    /// Reads until a line has this in it, and gives all until there.
    fn until(&mut self, wanted: &str) -> String {
        let mut all = String::new();
        while !all.contains(wanted) {
            let read = self.0.read_line(&mut all).unwrap();
            assert!(read > 0, "waited in vain for {wanted:?} in {all}");
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_worker_shows_the_output_of_a_run_of_another_one() {
    let Some((asker, mut runner)) = asker_and_runner().await else { return };
    let job = asker.insert("GPU", &["say:one+complain:two+count:2000+say:three"]).await[0];
    asker.until(job, JobStatus::Completed).await;
    assert!(asker.evidence().is_empty());
    // As on the worker itself: all of it, a part, the end, one stream.
    for parameters in ["", "stream=stdout", "stream=stderr", "offset=10", "stream=stdout&offset=4", "tail=2"] {
        let (here, there) = (asker.output(job, parameters), runner.output(job, parameters));
        assert_eq!(here.status, 200, "{parameters}: {}", here.text());
        assert_eq!(here.body, there.body, "{parameters}");
        for name in ["content-type", "callsheet-offset", "callsheet-next-offset"] {
            assert_eq!(here.header(name), there.header(name), "{parameters} {name}");
        }
    }
    assert_eq!(asker.output(job, "stream=stderr").text(), "two\n");
    let cli = |arguments: &[&str]| String::from_utf8(asker.cli(arguments).stdout).unwrap();
    let id = job.to_string();
    assert_eq!(cli(&["logs", &id, "--tail", "1", "--stream", "stdout"]), "three\n");
    assert_eq!(cli(&["logs", &id, "--stream", "stderr"]), "two\n");
    assert!(cli(&["--json", "logs", &id, "--tail", "1"]).contains("\"text\":\"three\\n\""));
    assert_eq!(cli(&["logs", &id]).len(), runner.output(job, "").body.len());

    // Followed, while it is written; and again from where one was.
    let job = asker.insert("GPU", &["say:first+wait:a+say:second+wait:b+say:third"]).await[0];
    runner.begun(job, 1).await;
    asker.until(job, JobStatus::Progress).await;
    let path = format!("/api/v1/jobs/{job}/logs?follow=true");
    let mut events = Events::open(&asker, &path, "");
    let head = events.until("first");
    assert!(head.contains("text/event-stream"), "{head}");
    let id = |text: &str| text.rsplit_once("id: ").unwrap().1.lines().next().unwrap().to_owned();
    let mut page = Events::open(&asker, &format!("/live?page=%2Fjobs%2F{job}"), "");
    runner.go_on("a");
    let more = events.until("second");
    let at = id(&format!("{head}{more}"));
    drop(events);
    let mut again = Events::open(&asker, &path, &format!("Last-Event-ID: {at}\r\n"));
    runner.go_on("b");
    let rest = again.until("event: end");
    assert!(rest.contains("third") && !rest.contains("second"), "{rest}");
    let told = page.until("third");
    assert!(told.contains("first") && told.contains("second"), "{told}");
    assert!(asker.get(&format!("/jobs/{job}")).text().contains("It is fetched from worker"));
    assert!(String::from_utf8(asker.cli(&["logs", &job.to_string(), "-f"]).stdout).unwrap().ends_with("third\n"));
    // One that has not begun anywhere when it is first followed.
    asker.cli(&["pause", "GPU"]);
    let job = asker.insert("GPU", &["say:late"]).await[0];
    let mut events = Events::open(&asker, &format!("/api/v1/jobs/{job}/logs?follow=true"), "");
    asker.cli(&["resume", "GPU"]);
    let all = events.until("event: end");
    assert!(all.contains("late"), "{all}");

    // What is there no more, and a worker that is.
    let run = &runner.runs(job).await[0];
    std::fs::remove_dir_all(runner.path(&format!("data/runs/{job}-1-{:.8}", run.run_token))).unwrap();
    let said = asker.output(job, "").problem(404);
    assert!(said.starts_with("worker runner says: the output of attempt 1"), "{said}");
    runner.signal(Signal::STOP);
    let said = asker.output(job, "").problem(504);
    assert!(said.contains("worker runner") && said.contains("has not answered"), "{said}");
    runner.signal(Signal::CONT);
    runner.stop().await;
    let said = asker.output(job, "").problem(502);
    assert!(said.starts_with("worker runner on ") && said.contains("stopped"), "{said}");
    let page = asker.get(&format!("/jobs/{job}")).text();
    assert!(page.contains("Its output is not here: worker runner on "), "{page}");
    let cli = asker.cli(&["logs", &job.to_string()]);
    assert_eq!(cli.status.code(), Some(1));
    assert!(String::from_utf8(cli.stderr).unwrap().contains("it can be read once that worker is back"));
    asker
        .sql("UPDATE workers SET state = 'ACTIVE', heartbeat_time = heartbeat_time - 40000 WHERE worker_id = 'runner'")
        .await;
    assert!(asker.output(job, "").problem(502).contains("has shown no sign of life for "));
    asker.sql("DELETE FROM workers WHERE worker_id = 'runner'").await;
    asker.output(job, "").problem(410);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_speak_https_with_whom_the_authority_vouches_for() {
    let Some(mut asker) = Service::prepare(On::Postgres, FLOWS).await else { return };
    let mut runner = Service::prepare_at(Some(asker.url.clone()), FLOWS).await;
    runner.configure("worker_id = \"runner\"\nlabels = [\"gpu\"]\n");
    let certificate = |name: &str| format!("{}/tests/tls/{name}.pem", tools::ROOT);
    let tls =
        format!("tls = {{ certificate = {:?}, key = {:?} }}\n", certificate("collector"), certificate("collector.key"));
    runner.share_with(SECRET, "", &tls);
    let trusting = |name: &str| format!(", certificate_authority = {:?}", certificate(name));
    asker.share_with(SECRET, &trusting("collector"), "");
    for service in [&mut asker, &mut runner] {
        service.serve().await;
    }
    let job = asker.insert("GPU", &["say:hello+wait"]).await[0];
    asker.until(job, JobStatus::Progress).await;
    let workers = asker.store.workers().await.unwrap();
    let address = workers.into_iter().find(|worker| worker.worker_id == "runner").unwrap().address;
    assert_eq!(address, Some(format!("https://{}", runner.address())));
    eventually("its output", async || asker.output(job, "").text() == "hello\n").await;
    let mut events = Events::open(&asker, &format!("/api/v1/jobs/{job}/logs?follow=true"), "");
    events.until("hello");
    runner.go();
    events.until("event: end");
    // Whom nobody vouches for is asked nothing: neither by those that browsers trust, nor by another one.
    let config = asker.config();
    for trusted in [String::new(), trusting("second")] {
        std::fs::write(asker.path("callsheet.toml"), config.replace(&trusting("collector"), &trusted)).unwrap();
        asker.kill_9();
        asker.serve().await;
        let said = asker.output(job, "").problem(502);
        assert!(said.contains("can't be reached at https://") && said.contains("certificate"), "{said}");
    }
}

/// Answers every connection with this, and tells what it was asked.
fn liar(answer: String) -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut question = vec![0; 4096];
            let length = stream.read(&mut question).unwrap();
            if sender.send(String::from_utf8_lossy(&question[..length]).into_owned()).is_err() {
                return;
            }
            stream.write_all(answer.as_bytes()).ok();
        }
    });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_know_the_secret_is_told_nothing_and_believed_nothing() {
    let Some((asker, mut runner)) = asker_and_runner().await else { return };
    let job = asker.insert("GPU", &["say:hello"]).await[0];
    asker.until(job, JobStatus::Completed).await;
    let run = &runner.runs(job).await[0];
    // Without a signature, and with one that is made up.
    let path = format!("/peer/v1/log?job={job}&attempt=1&token={}&stream=both&form=text", run.run_token);
    runner.get(&path).problem(401);
    let time = format!("Callsheet-Peer-Time: {}", runner.store.now().await.unwrap().unix_millis());
    let signature = format!("Callsheet-Peer-Signature: {}", "A".repeat(43));
    let refused = runner.request("GET", &path, &[&time, &signature], b"");
    assert!(refused.header("callsheet-peer-proof").is_none());
    refused.problem(401);

    // An address that leads to somebody else: nothing of the answer is believed, and nothing but the question goes there.
    let body = "this is no output";
    let (address, asked) = liar(format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nCallsheet-Peer-Proof: {}\r\n\r\n{body}",
        body.len(),
        "A".repeat(43)
    ));
    let send_to = async |address: &str| {
        asker.sql(&format!("UPDATE workers SET address = '{address}' WHERE worker_id = 'runner'")).await;
        asker
            .request("GET", &format!("/api/v1/jobs/{job}/logs"), &["Authorization: Bearer of-a-viewer"], b"")
            .problem(502)
    };
    let said = send_to(&format!("http://{address}")).await;
    assert!(said.contains("is not that worker, or has another secret") && !said.contains(body), "{said}");
    let question = asked.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(question.starts_with("GET /peer/v1/log?") && !question.contains("of-a-viewer"), "{question}");
    assert!(!question.contains(SECRET), "{question}");
    // A redirect is followed nowhere.
    let (trap, trapped) = liar(String::new());
    let (address, _asked) =
        liar(format!("HTTP/1.1 302 Found\r\nLocation: http://{trap}/\r\nContent-Length: 0\r\n\r\n"));
    send_to(&format!("http://{address}")).await;
    assert!(trapped.try_recv().is_err());
    // Nobody there; no address at all; one that is none.
    assert!(send_to("http://127.0.0.1:1").await.contains("can't be reached"));
    for none in ["file:///etc/passwd", "http://127.0.0.1:1/path", ""] {
        assert!(send_to(none).await.contains("has no address"), "{none}");
    }
    // Another worker of the same secret does not answer for it, and asks nobody.
    assert!(send_to(&format!("http://{}", asker.address())).await.contains("is not that worker"));

    // Another secret.
    runner.kill_9();
    std::fs::write(runner.path("peers.secret"), "another secret, which is as long as it must be").unwrap();
    runner.serve().await;
    let said = asker.output(job, "").problem(502);
    assert!(said.contains("is not that worker, or has another secret"), "{said}");
    // One that is too short starts nothing.
    runner.kill_9();
    std::fs::write(runner.path("peers.secret"), "short").unwrap();
    runner.spawn();
    eventually("the service to refuse to start", async || runner.is_dead()).await;
    assert!(runner.log().contains("it holds 5 characters, and 32 are the least"), "{}", runner.log());
}
