//! A real headless Chromium, driven by chromedriver (W3C WebDriver, <https://www.w3.org/TR/webdriver2/>).

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::eventually;

/// One browser with one window.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: TempDir,
}

/// Nothing of it asks anybody outside, and it runs as root too.
const ARGUMENTS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
];

impl Browser {
    /// Starts it; `None` where there is none on this machine.
    ///
    /// # Panics
    /// Where it is there and does not work, or where it is not there and this is CI.
    pub fn start() -> Option<Self> {
        let (Some(driver), Some(chromium)) = (program(&["chromedriver"]), program(&["chromium", "chromium-browser"]))
        else {
            missing("no chromium with chromedriver found");
            return None;
        };
        let profile = tempfile::Builder::new().prefix("cs-browser").tempdir().unwrap();
        let mut driver = Command::new(driver)
            .args(["--port=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // The browser's processes are in it too, and end with it.
            .process_group(0)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                line.rsplit_once("on port ")?.1.trim_end_matches('.').parse().ok().filter(|port| *port != 0)
            })
            .expect("chromedriver tells its port");
        std::thread::spawn(move || lines.for_each(drop));
        let mut browser = Self { driver, port, session: String::new(), _profile: profile };
        let directory = format!("--user-data-dir={}", browser._profile.path().display());
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([directory.as_str()]).collect();
        let options = json!({ "binary": chromium, "args": arguments });
        let wanted =
            json!({ "capabilities": { "alwaysMatch": { "browserName": "chrome", "goog:chromeOptions": options } } });
        let session = browser.ask("POST", "/session", &wanted);
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        browser.size(1280, 900);
        Some(browser)
    }

    /// Opens an address.
    pub fn open(&self, address: &str) {
        self.tell("/url", &json!({ "url": address }));
    }

    /// Opens one more tab and goes there; those before it are hidden then.
    pub fn tab(&self) {
        let tab = self.tell("/window/new", &json!({ "type": "tab" }));
        self.tell("/window", &json!({ "handle": tab["handle"] }));
    }

    /// What a script returns; `arguments[0]` is `argument`.
    pub fn run_with(&self, script: &str, argument: &Value) -> Value {
        self.tell("/execute/sync", &json!({ "script": script, "args": [argument] }))
    }

    pub fn run(&self, script: &str) -> Value {
        self.run_with(script, &Value::Null)
    }

    /// What a script hands to its callback.
    pub fn run_async(&self, script: &str) -> Value {
        self.tell("/execute/async", &json!({ "script": script, "args": [] }))
    }

    /// The text that can be seen; empty where there is no such element.
    pub fn text(&self, css: &str) -> String {
        let found =
            self.run_with("const e = document.querySelector(arguments[0]); return e ? e.innerText : ''", &json!(css));
        found.as_str().unwrap_or_default().to_owned()
    }

    pub fn exists(&self, css: &str) -> bool {
        self.run_with("return document.querySelector(arguments[0]) !== null", &json!(css)) == json!(true)
    }

    /// Clicks as a person does: where something else lies over it, that is clicked.
    pub fn click(&self, css: &str) {
        for _ in 0..50 {
            let element = self.element(css);
            match self.try_tell(&format!("/element/{element}/click"), &json!({})) {
                Ok(_) => return,
                // The page has just put a fresh one in its place.
                Err(error) if error.contains("stale element") => {}
                Err(error) => panic!("{css} can't be clicked: {error}"),
            }
        }
        panic!("{css} is replaced all the time");
    }

    /// Moves the pointer over an element, so far to the right of its middle, in pixels.
    pub fn hover(&self, css: &str, right: i32) {
        let origin = json!({ "element-6066-11e4-a52e-4f735466cecf": self.element(css) });
        let to = json!({ "type": "pointerMove", "duration": 0, "origin": origin, "x": right, "y": 0 });
        self.tell("/actions", &json!({ "actions": [{ "type": "pointer", "id": "mouse", "actions": [to] }] }));
    }

    /// Types into a field, after what is there.
    pub fn enter(&self, css: &str, text: &str) {
        let element = self.element(css);
        self.tell(&format!("/element/{element}/value"), &json!({ "text": text }));
    }

    /// Presses these keys one after the other, wherever the focus is; see <https://www.w3.org/TR/webdriver2/#keyboard-actions>.
    pub fn press(&self, keys: &str) {
        let stroke = |key: char| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }));
        let strokes: Vec<Value> = keys.chars().flat_map(stroke).collect();
        self.tell("/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] }));
    }

    fn element(&self, css: &str) -> String {
        let found = self.tell("/element", &json!({ "using": "css selector", "value": css }));
        found.as_object().and_then(|found| found.values().next()?.as_str()).expect("an element").to_owned()
    }

    /// The window's size, in pixels.
    pub fn size(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// `light` or `dark`, as the person's system says.
    pub fn colours(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", &features);
    }

    /// Whether scripts run on pages that are opened from now on.
    pub fn scripts(&self, run: bool) {
        self.devtools("Emulation.setScriptExecutionDisabled", &json!({ "value": !run }));
    }

    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.tell("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Waits until a script says true.
    pub async fn until(&self, what: &str, script: &str) {
        let ask = async || {
            self.try_tell("/execute/sync", &json!({ "script": script, "args": [] }))
                .is_ok_and(|value| value == json!(true))
        };
        let waited = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(eventually(what, ask)));
        if let Err(panic) = waited.await {
            eprintln!("the page was then at {}:\n{}", self.run("return location.href"), self.text("body"));
            std::panic::resume_unwind(panic);
        }
    }

    /// Waits until an element shows a text.
    pub async fn until_text(&self, css: &str, text: &str) {
        let script = format!(
            "const e = document.querySelector({}); return !!e && e.innerText.includes({})",
            json!(css),
            json!(text)
        );
        self.until(&format!("{css} to say {text:?}"), &script).await;
    }

    fn tell(&self, path: &str, body: &Value) -> Value {
        self.ask("POST", &format!("{}{path}", self.session), body)
    }

    fn try_tell(&self, path: &str, body: &Value) -> Result<Value, String> {
        self.try_ask("POST", &format!("{}{path}", self.session), body)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_ask(method, path, body).unwrap_or_else(|error| panic!("{method} {path} {body}: {error}"))
    }

    fn try_ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let body = body.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n");
        write!(request, "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
        let mut answer = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            answer.read_line(&mut line).map_err(|error| error.to_string())?;
            if line.trim().is_empty() {
                break;
            }
            if let Some((_, value)) =
                line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            {
                length = value.trim().parse().unwrap();
            }
        }
        let mut bytes = vec![0; length];
        answer.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        match answer["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", answer["value"]["message"])),
            None => Ok(answer["value"].clone()),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            drop(self.try_ask("DELETE", &self.session, &json!({})));
        }
        if let Some(group) = i32::try_from(self.driver.id()).ok().and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
        }
        self.driver.wait().ok();
    }
}

/// axe-core, which checks pages for accessibility; `None` where it has not been installed.
///
/// # Panics
/// Where it is missing and this is CI.
pub fn axe() -> Option<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/npm/node_modules/axe-core/axe.min.js");
    let axe = std::fs::read_to_string(path).ok();
    if axe.is_none() {
        missing("no axe-core (npm install --prefix target/npm --no-save axe-core)");
    }
    axe
}

fn missing(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what}, and CI must not skip these tests");
    // Not `eprintln!`, which libtest swallows: nobody should think that these tests have run.
    writeln!(std::io::stderr(), "skipped: {what}").ok();
}

fn program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names
        .iter()
        .flat_map(|name| directories.iter().map(move |directory| directory.join(name)))
        .find(|path| path.is_file())
}
