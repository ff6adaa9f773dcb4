//! The pages of the repository: their links have targets, their lines are short, the flags that they name exist, and
//! the commands of the README work. The doctests of `examples` compile the Rust of the pages.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use mysql_async::{Conn, Opts, prelude::Queryable};
use serde_json::json;
use tests::{
    MariaDb, WsServer,
    client::{Client, soon},
    program,
};

/// Maximum width of a line of prose, and maximum number of lines of the README.
const COLUMNS: usize = 120;
const README_LINES: usize = 130;

/// A page, its path from the top of the repository, and its text.
struct Page {
    path: PathBuf,
    text: String,
}

/// Returns the top of the repository.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository is there")
}

fn page(path: &str) -> Page {
    let text = fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    Page { path: path.into(), text }
}

/// Returns every page of the repository, except for those that other programs put there.
fn pages() -> Vec<Page> {
    let top = top();
    let (mut directories, mut pages) = (vec![top.clone()], Vec::new());
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with('.') || name == "target" || name == "node_modules" {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else if name.ends_with(".md") {
                let text = fs::read_to_string(&path).unwrap();
                pages.push(Page { path: path.strip_prefix(&top).unwrap().to_owned(), text });
            }
        }
    }
    assert!(pages.len() > 10, "the pages are not found");
    pages
}

/// Returns the README and the pages of `docs/`, which operators read.
fn manual() -> Vec<Page> {
    let manual = |page: &Page| page.path == Path::new("README.md") || page.path.starts_with("docs");
    pages().into_iter().filter(manual).collect()
}

/// A line within a page.
struct Line<'a> {
    number: usize,
    text: &'a str,
    /// True if the line is within a block of code, or begins or ends one.
    code: bool,
}

impl Page {
    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let mut within = false;
        self.text.lines().enumerate().map(move |(index, text)| {
            let fence = text.trim_start().starts_with("```");
            let code = within || fence;
            within ^= fence;
            Line { number: index + 1, text, code }
        })
    }

    /// Returns the blocks of code in this language, as named after the fence.
    fn blocks(&self, language: &str) -> Vec<String> {
        let mut blocks: Vec<String> = Vec::new();
        let mut within = false;
        for Line { text, .. } in self.lines() {
            match text.trim_start().strip_prefix("```") {
                Some(info) => {
                    within = !within && info == language;
                    if within {
                        blocks.push(String::new());
                    }
                }
                None if within => blocks.last_mut().expect("a block").extend([text, "\n"]),
                None => {}
            }
        }
        blocks
    }

    /// Returns the text without its blocks of code, and the same with blanks for code within lines.
    fn prose(&self) -> (String, String) {
        let prose: String =
            self.lines().map(|line| if line.code { "\n".into() } else { format!("{}\n", line.text) }).collect();
        let mut code = false;
        let blank = |letter: char| {
            code ^= letter == '`';
            if letter == '\n' || !(code || letter == '`') { letter.to_string() } else { " ".repeat(letter.len_utf8()) }
        };
        let blanked = prose.chars().map(blank).collect();
        (prose, blanked)
    }

    /// Returns the code within lines.
    fn spans(&self) -> Vec<String> {
        let (prose, _) = self.prose();
        prose.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")).collect()
    }

    /// Returns the links: the text and the target of each.
    fn links(&self) -> Vec<(String, String)> {
        let (prose, blanked) = self.prose();
        let mut links = Vec::new();
        for (at, _) in blanked.match_indices("](") {
            let start = blanked[..at].rfind('[').map_or(at, |start| start + 1);
            let end = blanked[at..].find(')').map_or(blanked.len(), |end| at + end);
            links.push((prose[start..at].to_owned(), prose[at + 2..end].to_owned()));
        }
        links
    }

    /// Returns the anchors of the headings, as GitHub makes them.
    fn anchors(&self) -> BTreeSet<String> {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let headings = self.lines().filter(|line| !line.code && line.text.starts_with('#'));
        headings
            .map(|line| {
                let heading = line.text.trim_start_matches('#').trim().to_lowercase();
                let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, '-' | '_' | ' ');
                let anchor: String = heading.chars().filter(kept).collect::<String>().replace(' ', "-");
                let count = seen.entry(anchor.clone()).or_default();
                *count += 1;
                if *count == 1 { anchor } else { format!("{anchor}-{}", *count - 1) }
            })
            .collect()
    }
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let mut wrong = Vec::new();
    for page in pages() {
        for (text, link) in page.links() {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').map_or((&*link, None), |(path, anchor)| (path, Some(anchor)));
            let target = match path {
                "" => top().join(&page.path),
                path => top().join(page.path.parent().unwrap_or(Path::new(""))).join(path),
            };
            let says = |why: &str| format!("{}: [{text}]({link}): {why}", page.path.display());
            if !target.exists() {
                wrong.push(says("no such file"));
                continue;
            }
            let read = || fs::read_to_string(&target).unwrap_or_default();
            if let Some(anchor) = anchor {
                let there = Page { path: PathBuf::new(), text: read() }.anchors();
                if !there.contains(anchor) {
                    wrong.push(says(&format!("no such heading: there are {there:?}")));
                }
            }
            // A test that is named has to be in the file.
            let name = text.strip_prefix('`').and_then(|text| text.strip_suffix('`'));
            if let Some(name) = name.filter(|_| path.ends_with(".rs"))
                && !read().contains(&format!("fn {name}("))
            {
                wrong.push(says("no such function"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_readme_leads_to_every_page_of_the_documentation() {
    let links: Vec<String> = page("README.md").links().into_iter().map(|(_, link)| link).collect();
    for page in manual().iter().filter(|page| page.path.starts_with("docs")) {
        assert!(links.iter().any(|link| Path::new(link) == page.path), "{}", page.path.display());
    }
}

#[test]
fn lines_of_prose_are_short() {
    let mut long = Vec::new();
    for page in pages() {
        // A table's row cannot be broken, and neither can one word, such as a link.
        let breakable = |text: &str| !text.trim_start().starts_with('|') && text.split_whitespace().count() > 1;
        for line in page.lines().filter(|line| !line.code && breakable(line.text)) {
            let columns = line.text.chars().count();
            if columns > COLUMNS {
                long.push(format!("{}:{}: {columns} columns", page.path.display(), line.number));
            }
        }
    }
    assert!(long.is_empty(), "longer than {COLUMNS} columns:\n{}", long.join("\n"));
}

#[test]
fn the_readme_is_short() {
    let lines = page("README.md").text.lines().count();
    assert!(lines <= README_LINES, "{lines} lines, of at most {README_LINES}");
}

/// A flag in the help of a command.
struct Flag {
    name: String,
    variable: Option<String>,
    /// The default, if it is a number.
    number: Option<String>,
}

/// Returns the flags of every command of `ws-server`, by the command's name.
fn flags() -> BTreeMap<String, Vec<Flag>> {
    let help = help(&["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands = commands.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    commands.map(|name| (name.to_owned(), flags_in(&self::help(&[name, "--help"])))).collect()
}

fn help(arguments: &[&str]) -> String {
    let output = Command::new(program("ws-server")).args(arguments).output().unwrap();
    assert!(output.status.success(), "ws-server {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn flags_in(help: &str) -> Vec<Flag> {
    let mut flags: Vec<Flag> = Vec::new();
    let mut unwrapped = String::new();
    for line in help.lines() {
        // A line may wrap after the colon.
        match unwrapped.ends_with("[env:") || unwrapped.ends_with("[default:") {
            true => unwrapped.extend([" ", line.trim_start()]),
            false => unwrapped.extend(["\n", line]),
        }
    }
    for line in unwrapped.lines() {
        let text = line.trim_start();
        let text = text.strip_prefix("-h, ").or(text.strip_prefix("-V, ")).unwrap_or(text);
        // A help text that names a flag may wrap before it; texts are further to the right.
        if text.starts_with("--") && line.starts_with("  ") && line.len() - line.trim_start().len() <= 6 {
            flags.push(Flag { name: flag(text), variable: None, number: None });
        }
        let Some(Flag { variable, number, .. }) = flags.last_mut() else { continue };
        if let Some((_, rest)) = text.split_once("[env: ") {
            *variable = Some(rest.split(['=', ']']).next().unwrap_or_default().to_owned());
        }
        if let Some((_, rest)) = text.split_once("[default: ") {
            let value = rest.split([',', ']']).next().unwrap_or_default();
            let is_number = value.starts_with(|digit: char| digit.is_ascii_digit()) && !value.contains(['.', ':']);
            *number = is_number.then(|| value.to_owned());
        }
    }
    flags
}

/// Returns the flag at the beginning of a text.
fn flag(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '-').collect()
}

/// Returns the flags that a command line gives to `ws-server`. A line that begins with a flag is about `ws-server` too.
fn given(line: &str) -> Vec<String> {
    let is_program = |word: &&str| *word == "ws-server" || word.ends_with("bin/ws-server");
    let mut words = line.split_whitespace().peekable();
    if !words.peek().is_some_and(|word| word.starts_with("--")) {
        words.find(is_program);
    }
    words.filter(|word| word.starts_with("--") && word.len() > 2).map(flag).collect()
}

#[test]
fn every_flag_of_ws_server_that_a_page_names_exists() {
    let flags = flags();
    let known: BTreeSet<&str> = flags.values().flatten().map(|flag| flag.name.as_str()).chain(["--version"]).collect();
    let mut named = 0;
    for page in manual() {
        let code = page.lines().filter(|line| line.code).map(|line| line.text);
        let code = code.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
        for line in code.lines().map(str::to_owned).chain(page.spans()) {
            for flag in given(&line) {
                named += 1;
                assert!(known.contains(&*flag), "{}: {flag} in `{line}`", page.path.display());
            }
        }
    }
    assert!(named > 50, "the flags are not found");
}

#[test]
fn every_variable_of_ws_server_that_a_page_names_exists() {
    let flags = flags();
    let known: BTreeSet<&str> = flags.values().flatten().filter_map(|flag| flag.variable.as_deref()).collect();
    for page in manual() {
        for (at, prefix) in page.text.match_indices("WS_SERVER_") {
            let is_name = |letter: char| letter.is_ascii_uppercase() || letter == '_';
            let rest = &page.text[at + prefix.len()..];
            let name = &rest[..rest.find(|letter| !is_name(letter)).unwrap_or(rest.len())];
            let whole = format!("{prefix}{name}");
            assert!(name.is_empty() || known.contains(&*whole), "{}: {whole}", page.path.display());
        }
    }
}

#[test]
fn every_flag_of_ws_server_is_documented_with_its_default_and_variable() {
    let operations = page("docs/operations.md");
    let documented: BTreeSet<String> = operations.spans().iter().flat_map(|span| given(span)).collect();
    for Flag { name, variable, number } in flags().into_values().flatten() {
        if name == "--help" {
            continue;
        }
        assert!(documented.contains(&name), "{name} is not in operations.md");
        // As the page says, except for those that it names.
        if let Some(variable) = variable {
            let regular = format!("WS_SERVER_{}", name[2..].replace('-', "_").to_uppercase());
            assert!(variable == regular || operations.text.contains(&variable), "{variable} of {name}");
        }
        let row = operations.text.lines().find(|line| {
            line.strip_prefix("| `")
                .is_some_and(|line| line.starts_with(&name) && line[name.len()..].starts_with([' ', '`']))
        });
        if let Some((number, row)) = number.zip(row) {
            let default = row.split(" | ").nth(1).unwrap_or_default().replace([',', '`'], "");
            assert!(default.starts_with(&number), "the default of {name} is {number}: {row}");
        }
    }
}

/// A node refuses the text of an error page for good, while the client tries again if `credentials` fails.
#[test]
fn the_recipes_for_tokens_take_no_error_page_for_a_token() {
    for path in ["docs/site.md", "docs/logins.md", "examples/site/public/index.php"] {
        let text = page(path).text;
        let (_, rest) = text.split_once("  const credentials = async").unwrap_or_else(|| panic!("{path}: no recipe"));
        let (body, _) = rest.split_once("\n  };").expect("the end of a function");
        let script = format!(
            "const credentials = async{body}\n}};
             (async () => {{
                 const outcomes = [];
                 for (const status of [200, 403, 500, 502, 503, 429]) {{
                     globalThis.fetch = async () => new Response(`text of ${{status}}`, {{ status }});
                     outcomes.push(await credentials().catch(() => 'fails'));
                 }}
                 console.log(outcomes.join());
             }})();"
        );
        let output = Command::new("node").args(["-e", &script]).output().expect("node");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(told.trim(), "text of 200,text of 403,fails,fails,fails,fails", "{path}: {output:?}");
    }
}

#[test]
fn every_cause_of_a_degraded_node_is_documented() {
    let source = fs::read_to_string(top().join("crates/ws-cluster-core/src/status.rs")).unwrap();
    let (_, rest) = source.split_once("fn as_str").expect("the texts of `Degraded`");
    let (texts, _) = rest.split_once("\n}").expect("an end");
    let texts: Vec<&str> = texts.split('"').skip(1).step_by(2).collect();
    assert!(texts.len() > 5, "the texts are not found");

    let operations = page("docs/operations.md");
    let (_, table) = operations.text.split_once("| `WHY` begins with").expect("the table of causes");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let documented: Vec<&str> =
        rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2)).collect();
    for text in &texts {
        assert!(documented.iter().any(|beginning| text.starts_with(beginning)), "{text} is not in operations.md");
    }
    for beginning in documented {
        assert!(texts.iter().any(|text| text.starts_with(beginning)), "no node says {beginning}");
    }
}

#[test]
fn the_nginx_of_the_page_is_that_of_the_example() {
    let example = fs::read_to_string(top().join("examples/site/nginx.conf")).unwrap();
    let directives = |text: &str| -> Vec<String> {
        let code = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim().to_owned());
        code.filter(|line| !line.is_empty()).collect()
    };
    let example = directives(&example);
    let shown = page("docs/site.md").blocks("nginx").iter().flat_map(|block| directives(block)).collect::<Vec<_>>();
    assert!(shown.len() > 20, "the block is not found");
    for directive in shown {
        assert!(example.contains(&directive), "{directive}");
    }
}

#[test]
fn the_php_of_the_page_is_that_of_the_example() {
    let example = fs::read_to_string(top().join("examples/site/public/backend.php")).unwrap();
    let statements = |text: &str| -> Vec<String> {
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default().trim().to_owned());
        code.filter(|line| !line.is_empty()).collect()
    };
    let example = statements(&example);
    let blocks = page("docs/site.md").blocks("php");
    let block = blocks.iter().find(|block| block.contains("function add_comment")).expect("the block");
    for line in
        statements(block).iter().filter(|line| !line.starts_with("require") && !line.starts_with("(new Backend"))
    {
        assert!(example.iter().any(|own| own == line || line.starts_with("use WsCluster")), "{line}");
    }
}

/// A replacement for Cargo: a program is built and installed already.
const CARGO: &str = r#"#!/bin/sh
case "$1" in
run) while [ "$1" != -- ]; do shift; done; shift; exec ws-server "$@" ;;
install) test -f "$3/Cargo.toml" ;;
*) exit 1 ;;
esac
"#;

/// Returns a shell that runs this block of the README from the top of the repository, with its state in this directory.
/// The last command replaces the shell, so that it ends with it.
fn shell(state: &Path, block: &str) -> tokio::process::Command {
    let cargo = state.join("cargo");
    fs::write(&cargo, CARGO).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let programs = program("ws-server").parent().expect("a directory").to_owned();
    let path = std::env::var("PATH").unwrap_or_default();

    let mut lines: Vec<&str> = block.trim_end().lines().collect();
    let last = format!("exec {}", lines.pop().expect("a command"));
    lines.push(&last);
    let mut command = tokio::process::Command::new("sh");
    command.args(["-ec", &lines.join("\n")]).current_dir(top()).kill_on_drop(true).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WS_") {
            command.env_remove(name);
        }
    }
    command
        .env("PATH", format!("{}:{}:{path}", state.display(), programs.display()))
        .env("XDG_STATE_HOME", state)
        // Replaces a port that may be taken.
        .env("WS_SERVER_LISTEN", "127.0.0.1:0");
    command
}

/// Returns the text with one part of it replaced, which must occur once.
fn replaced(text: &str, part: &str, by: &str) -> String {
    assert_eq!(text.matches(part).count(), 1, "{part} in:\n{text}");
    text.replace(part, by)
}

#[tokio::test]
async fn the_demo_of_the_readme_is_a_cluster() {
    let state = tempfile::tempdir().unwrap();
    let blocks = page("README.md").blocks("sh");
    let one = WsServer::spawn(shell(state.path(), &blocks[0])).await;
    let two = WsServer::spawn(shell(state.path(), &replaced(&blocks[1], "127.0.0.1:8081", "127.0.0.1:0"))).await;
    assert!(one.http("GET", "/", &[], "").await.1.contains("<script"), "a page");
    let (mut ann, mut bob) = (one.client(Some("ann")).await, two.client(Some("bob")).await);
    ann.send("say", json!(["hello"])).await;
    loop {
        let message = bob.json().await;
        if message["action"] == "said" {
            assert_eq!(message["details"], json!(["ann", "hello"]));
            break;
        }
    }
}

#[tokio::test]
async fn the_php_of_the_readme_reaches_a_user_of_the_site() {
    const KEY: &str = "a key that only the site and its ws-servers have";
    let state = tempfile::tempdir().unwrap();
    let database = MariaDb::shared().await.database().await;
    let mut site = Conn::new(Opts::from_url(&database).unwrap()).await.unwrap();
    site.query_drop(fs::read_to_string(top().join("examples/site/schema.sql")).unwrap()).await.unwrap();
    site.query_drop("INSERT INTO sessions VALUES ('e4d909', 'bob', UNIX_TIMESTAMP() + 3600, '')").await.unwrap();
    site.disconnect().await.unwrap();

    let readme = page("README.md");
    let block = replaced(&readme.blocks("sh")[2], "mysql://site:password@127.0.0.1:3306/site", &database);
    let block =
        replaced(&block, "WS_SERVER_PUBLISH_KEY=$(openssl rand -hex 32)", &format!("WS_SERVER_PUBLISH_KEY='{KEY}'"));
    let node = WsServer::spawn(shell(state.path(), &block)).await;
    node.ready().await;
    let mut bob = Client::connect(node.address(), &[("cookie", "PHPSESSID=e4d909")]).await;
    bob.send("Client/authentication", json!([])).await;
    assert_eq!(bob.authenticated().await["user"], "bob");

    let mut php = tokio::process::Command::new("php");
    php.args(["-r", &readme.blocks("php")[0]]).current_dir(top());
    php.env("WS_SERVERS", format!("http://{}", node.address())).env("WS_SERVER_PUBLISH_KEY", KEY);
    let output = soon(php.output()).await.unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    bob.expect("news/new", json!(["ann", "Hello"])).await;
}
