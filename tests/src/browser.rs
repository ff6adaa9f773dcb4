//! A headless Chromium, driven over WebDriver: one chromedriver for the test process, and for each test a new browser
//! with a profile of its own, one at a time. None outlives the test process, however that ends.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use fantoccini::{
    Client, ClientBuilder,
    actions::{InputSource, KeyAction, KeyActions},
    wd::{WebDriverCompatibleCommand, WindowHandle},
};
use http::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, MutexGuard, OnceCell},
    task::spawn_blocking,
};
use url::{ParseError, Url};

/// Starts chromedriver. When the test process is gone, it ends chromedriver with all its browsers and removes their
/// files. The test process cannot do that, since statics are not dropped. Chromium's parent may die before Chromium, so
/// `setsid` makes a process group.
const GUARD: &str = r#"
directory=$1
# Chromium writes below both, whatever its profile.
export HOME="$directory" TMPDIR="$directory"
setsid chromedriver --port=0 </dev/null 2>&1 &
driver=$!
exec >/dev/null 2>&1
read -r end
kill -s KILL -- -$driver
wait $driver
# Those of its browsers end on their own time, and may write until then.
for attempt in 1 2 3 4 5; do
    rm -rf "$directory" && break
    sleep 0.2
done
"#;

/// As root, Chromium has no sandbox. Only the pages shall use the network and the processor.
const ARGUMENTS: [&str; 12] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    // A page in a background tab reconnects as quickly as the one in front.
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--window-size=1000,1000",
];

/// Time for a start on a machine that starts many things at once. Usually it takes less than a second.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time for a script or a page. Only a failing test waits for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A browser of one test, without cookies and with an empty cache. It ends when dropped.
///
/// There is one at a time, because heartbeats starve if several browsers run on few cores.
#[derive(Debug)]
pub struct Browser {
    /// A lock, since switching to a tab and acting in it are two commands, and the browser keeps the state between
    /// them.
    client: Mutex<Client>,
    driver: SocketAddr,
    session: String,
    _turn: MutexGuard<'static, ()>,
}

impl Browser {
    /// Waits for its turn and starts.
    ///
    /// # Panics
    /// Panics if chromium or chromedriver is not installed or does not start.
    pub async fn start() -> Self {
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        let driver = Driver::shared().await;
        let profile = tempfile::tempdir_in(driver.directory.path()).expect("a directory").keep();
        let mut arguments = ARGUMENTS.map(str::to_owned).to_vec();
        arguments.push(format!("--user-data-dir={}", profile.display()));
        let milliseconds = PATIENCE.as_millis();
        let Value::Object(capabilities) = json!({
            "goog:chromeOptions": { "args": arguments },
            "timeouts": { "script": milliseconds, "pageLoad": milliseconds },
        }) else {
            unreachable!("an object stands above");
        };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://{}", driver.address))
            .await
            .expect("Chromium (packages chromium and chromium-driver) starts");
        let session = client.session_id().await.expect("a session").expect("its id");
        Self { client: Mutex::new(client), driver: driver.address, session, _turn: turn }
    }

    /// Opens a page in a new tab, and waits until it is loaded.
    pub async fn open(&self, url: &str) -> Tab<'_> {
        let client = self.client.lock().await;
        let window = client.new_window(true).await.expect("a new tab").handle;
        client.switch_to_window(window.clone()).await.expect("it is there");
        client.goto(url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
        Tab { browser: self, window }
    }
}

impl Drop for Browser {
    /// Waits for the browser's end, so that the next test has the machine for itself. Fantoccini does not wait if a
    /// test panics, because its task ends with the runtime.
    fn drop(&mut self) {
        let end = || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(self.driver)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let (driver, session) = (self.driver, &self.session);
            write!(stream, "DELETE /session/{session} HTTP/1.1\r\nhost: {driver}\r\n\r\n")?;
            // The driver answers when the browser has ended, and keeps the connection open.
            stream.read_exact(&mut [0])
        };
        // Chromedriver's own end also ends its remaining browsers.
        let _ = end();
    }
}

/// One tab of a browser.
#[derive(Debug)]
pub struct Tab<'a> {
    browser: &'a Browser,
    window: WindowHandle,
}

impl Tab<'_> {
    /// Runs the body of an asynchronous function in the page, with the given `args`. Returns the function's result.
    ///
    /// # Panics
    /// Panics if the function throws, or does not end in time.
    pub async fn run(&self, body: &str, args: Value) -> Value {
        let script = format!(
            "const [args, done] = arguments;
             (async () => {{ {body} }})().then((value) => done([value ?? null]), (error) => done(String(error)));"
        );
        match self.client().await.execute_async(&script, vec![args]).await {
            Ok(Value::Array(value)) => value.into_iter().next().unwrap_or_default(),
            Ok(thrown) => panic!("{thrown}\nin: {body}"),
            Err(error) => panic!("{error}\nin: {body}"),
        }
    }

    /// Loads the page again, and waits until it is loaded.
    pub async fn reload(&self) {
        self.client().await.refresh().await.expect("the page is loaded again");
    }

    /// Types on the keyboard, wherever the focus is. `\t` and `\n` are the keys of these names.
    pub async fn press(&self, keys: &str) {
        let client = self.client().await;
        for key in keys.chars() {
            let value = match key {
                '\t' => '\u{e004}',
                '\n' => '\u{e007}',
                key => key,
            };
            let keys = KeyActions::new("keyboard".to_owned());
            let keys = keys.then(KeyAction::Down { value }).then(KeyAction::Up { value });
            client.perform_actions(keys).await.expect("a keyboard");
        }
    }

    /// Shows the page as on a screen of this width, in CSS pixels, and with this colour scheme (`light` or `dark`).
    pub async fn emulate(&self, width: u32, scheme: &str) {
        let client = self.client().await;
        let screen = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500 });
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        for (command, parameters) in
            [("Emulation.setDeviceMetricsOverride", screen), ("Emulation.setEmulatedMedia", media)]
        {
            client.issue_cmd(DevTools { command, parameters }).await.expect("a command of Chromium");
        }
    }

    /// Returns a picture of the page as PNG.
    pub async fn screenshot(&self) -> Vec<u8> {
        self.client().await.screenshot().await.expect("a screenshot")
    }

    /// Returns the browser, with this tab in front.
    async fn client(&self) -> MutexGuard<'_, Client> {
        let client = self.browser.client.lock().await;
        client.switch_to_window(self.window.clone()).await.expect("the tab is there");
        client
    }
}

/// A command of Chromium's own protocol, which chromedriver passes on.
#[derive(Debug)]
struct DevTools {
    command: &'static str,
    parameters: Value,
}

impl WebDriverCompatibleCommand for DevTools {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(json!({ "cmd": self.command, "params": self.parameters }).to_string()))
    }
}

/// The running chromedriver and the shell that guards it.
#[derive(Debug)]
struct Driver {
    directory: TempDir,
    address: SocketAddr,
    guard: Child,
}

impl Driver {
    /// Returns the chromedriver of this process. The first call starts it.
    async fn shared() -> &'static Self {
        static SHARED: OnceCell<Driver> = OnceCell::const_new();
        SHARED.get_or_init(|| async { spawn_blocking(Self::start).await.expect("no panic") }).await
    }

    fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("browser-").tempdir().expect("a temporary directory");
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Without this, ctrl-c ends the guard before the browsers.
            .process_group(0)
            .spawn()
            .expect("a shell");
        let log = guard.stdout.take().expect("standard output is piped");
        match follow(log).recv_timeout(START_TIMEOUT).unwrap_or_else(|error| Err(error.to_string())) {
            Ok(port) => Self { directory, address: (Ipv4Addr::LOCALHOST, port).into(), guard },
            Err(log) => {
                drop(guard.stdin.take());
                let _ = guard.wait();
                panic!("chromedriver (package chromium-driver) does not start:\n{log}");
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The guard waits for the end of its input.
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// Reads the driver's log to its end, so that the driver never blocks. Reports once: the port, or why there is none.
fn follow(log: ChildStdout) -> mpsc::Receiver<Result<u16, String>> {
    let (report, reports) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut text = String::new();
        let mut lines = BufReader::new(log).lines().map_while(Result::ok);
        for line in &mut lines {
            let port = line.split_once("started successfully on port ").map(|(_, port)| port.trim_end_matches('.'));
            if let Some(port) = port.and_then(|port| port.parse().ok()) {
                let _ = report.send(Ok(port));
                lines.for_each(drop);
                return;
            }
            text.extend([&line, "\n"]);
        }
        let _ = report.send(Err(text));
    });
    reports
}
