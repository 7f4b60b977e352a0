//! A plain HTTP/1.1 client, which sends what it is told, right or wrong.

#![allow(dead_code, reason = "a client can do more than one file of tests needs")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::service::Service;

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Checks that this is a problem of RFC 9457 with this status, and gives its `detail`.
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let json = self.json();
        assert_eq!(json["status"], status);
        assert!(json["title"].as_str().is_some_and(|title| !title.is_empty()), "{json}");
        json["detail"].as_str().unwrap().to_owned()
    }
}

impl Service {
    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, json: &Value) -> Answer {
        self.request("POST", path, &["Content-Type: application/json"], json.to_string().as_bytes())
    }

    /// What the forms of the page hold for whoever has this cookie, as a header.
    pub fn csrf(&self, cookie: &str) -> String {
        let page = self.request("GET", "/", &[cookie], b"").text();
        let (_, value) = page.split_once("name=\"csrf\" value=\"").expect("the page has a form");
        value.split('"').next().unwrap().to_owned()
    }

    /// Sends one request. `Host` is the service's own unless `headers` has one.
    pub fn request(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|header| header.to_ascii_lowercase().starts_with("host:")) {
            head += &format!("Host: {}\r\n", self.address());
        }
        if !body.is_empty() || method == "POST" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        for header in headers {
            head += &format!("{header}\r\n");
        }
        self.send(&[format!("{head}\r\n").as_bytes(), body].concat())
    }

    /// Sends these bytes, and reads one answer.
    pub fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // A server that has refused the head need not read the rest.
        stream.write_all(bytes).ok();
        read_answer(&mut BufReader::new(stream))
    }

    /// Opens a stream of server-sent events.
    pub fn events(&self, path: &str, headers: &[&str]) -> Events {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n", self.address());
        for header in headers {
            head += &format!("{header}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let (status, headers) = read_head(&mut reader);
        assert_eq!(status, 200, "{headers:?}");
        let mime = headers.iter().find(|(name, _)| name == "content-type").map(|(_, value)| value.as_str());
        assert_eq!(mime, Some("text/event-stream"));
        Events { lines: Chunked { reader, left: 0, over: false } }
    }
}

/// An open stream of server-sent events.
pub struct Events {
    lines: Chunked,
}

/// One server-sent event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerSent {
    pub id: Option<String>,
    pub event: String,
    pub data: String,
}

impl ServerSent {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Iterator for Events {
    type Item = ServerSent;

    /// The next event; comments are passed over. `None` where the server has ended the stream.
    fn next(&mut self) -> Option<ServerSent> {
        let mut sent = ServerSent { event: "message".to_owned(), ..ServerSent::default() };
        let mut any = false;
        loop {
            let line = self.lines.line()?;
            if line.is_empty() && any {
                return Some(sent);
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => sent.id = Some(value.to_owned()),
                "event" => sent.event = value.to_owned(),
                "data" if sent.data.is_empty() => sent.data = value.to_owned(),
                "data" => sent.data = format!("{}\n{value}", sent.data),
                _ => continue,
            }
            any = true;
        }
    }
}

struct Chunked {
    reader: BufReader<TcpStream>,
    left: usize,
    over: bool,
}

impl Chunked {
    fn byte(&mut self) -> Option<u8> {
        if self.left == 0 {
            let mut size = String::new();
            if self.over || self.reader.read_line(&mut size).ok()? == 0 {
                return None;
            }
            self.left = usize::from_str_radix(size.trim(), 16).ok()?;
            if self.left == 0 {
                self.over = true;
                return None;
            }
        }
        let mut byte = [0];
        self.reader.read_exact(&mut byte).ok()?;
        self.left -= 1;
        if self.left == 0 {
            self.reader.read_exact(&mut [0; 2]).ok()?;
        }
        Some(byte[0])
    }

    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Some(String::from_utf8(line).unwrap()),
                byte => line.push(byte),
            }
        }
    }
}

fn read_head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {line:?}")).parse().unwrap();
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else { return (status, headers) };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn read_answer(reader: &mut BufReader<TcpStream>) -> Answer {
    let (status, headers) = read_head(reader);
    let mut body = Vec::new();
    // A connection that is closed while bytes of ours are unread may be reset behind the answer.
    reader.read_to_end(&mut body).ok();
    if headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
        let mut rest = body.as_slice();
        let mut whole = Vec::new();
        while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap().trim(), 16).unwrap();
            if size == 0 {
                break;
            }
            whole.extend_from_slice(&rest[end + 2..end + 2 + size]);
            rest = &rest[end + 4 + size..];
        }
        body = whole;
    }
    Answer { status, headers, body }
}
