//! The layout of the crates: which of their top-level modules uses which. There are no circles, and no module uses one
//! that is above it in the tables of ARCHITECTURE.md. Code of tests does not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
};

/// A crate's top-level modules, and the places in which one names another.
#[derive(Default)]
struct Crate {
    modules: BTreeSet<String>,
    uses: BTreeSet<Use>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    from: String,
    to: String,
    file: String,
    path: String,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} uses {}: {} names crate::{}", self.from, self.to, self.file, self.path)
    }
}

/// The modules that one source file names.
#[derive(Default)]
struct Source {
    /// Paths from the crate's root.
    paths: Vec<Vec<String>>,
    /// The exports under a name: the path, from the file's own module.
    exports: Vec<Vec<String>>,
    /// Modules in files of their own.
    modules: Vec<String>,
}

#[test]
fn the_modules_of_a_crate_are_in_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let order = orders(&fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap());
    let mut faults = Vec::new();
    for folder in fs::read_dir(root.join("crates")).unwrap() {
        let folder = folder.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let examined = examine(&folder.join("src"));
        faults.extend(circles(&examined).into_iter().map(|fault| format!("{name}: a circle: {fault}")));
        if let Some(order) = order.get(&name) {
            faults.extend(upwards(&examined, order).into_iter().map(|fault| format!("{name}: {fault}")));
        }
    }
    assert!(order.contains_key("ws-cluster"), "ARCHITECTURE.md has no table under `crates/ws-cluster/src`");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Returns the uses that are part of a circle.
fn circles(examined: &Crate) -> Vec<String> {
    let mut left: BTreeSet<_> = examined.modules.iter().map(String::as_str).collect();
    loop {
        let inside = |used: &&Use| left.contains(&*used.from) && left.contains(&*used.to);
        let within: Vec<_> = examined.uses.iter().filter(inside).collect();
        let users: BTreeSet<_> = within.iter().map(|used| &*used.from).collect();
        let used: BTreeSet<_> = within.iter().map(|used| &*used.to).collect();
        let both: BTreeSet<_> = users.intersection(&used).copied().collect();
        if both == left {
            return within.iter().map(ToString::to_string).collect();
        }
        left = both;
    }
}

/// Returns the uses that go against the order, from top to bottom.
fn upwards(examined: &Crate, order: &[String]) -> Vec<String> {
    let place = |module: &String| order.iter().position(|known| known == module);
    let unlisted = examined.modules.iter().filter(|module| place(module).is_none());
    let gone = order.iter().filter(|module| !examined.modules.contains(*module));
    let upwards = examined.uses.iter().filter(|used| {
        let (from, to) = (place(&used.from), place(&used.to));
        from.zip(to).is_some_and(|(from, to)| to < from)
    });
    let unlisted = unlisted.map(|module| format!("{module} is not in ARCHITECTURE.md"));
    let gone = gone.map(|module| format!("ARCHITECTURE.md lists {module}, which does not exist"));
    unlisted.chain(gone).chain(upwards.map(|used| format!("upwards: {used}"))).collect()
}

/// Returns the modules of each crate, as the tables under the headings `crates/NAME/src` list them.
fn orders(page: &str) -> BTreeMap<String, Vec<String>> {
    let mut orders: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = None;
    for line in page.lines() {
        if line.starts_with('#') {
            let folder = line.split('`').nth(1).and_then(|folder| folder.strip_prefix("crates/"));
            name = folder.and_then(|folder| folder.strip_suffix("/src")).map(str::to_owned);
        } else if let (Some(name), Some(row)) = (&name, line.strip_prefix('|')) {
            let cell = row.split('|').next().unwrap_or_default();
            let modules = cell.split('`').skip(1).step_by(2).map(|module| module.trim_end_matches('/').to_owned());
            orders.entry(name.clone()).or_default().extend(modules);
        }
    }
    orders
}

fn examine(folder: &Path) -> Crate {
    let root = ["lib.rs", "main.rs"].map(|name| folder.join(name)).into_iter().find(|path| path.is_file());
    let root = read(&root.expect("a root file"), 0);
    let mut examined = Crate { modules: root.modules.iter().cloned().collect(), ..Crate::default() };
    let exports: BTreeMap<String, String> = root
        .exports
        .iter()
        .filter(|path| path.len() > 1)
        .map(|path| (path[path.len() - 1].clone(), path[0].clone()))
        .filter(|(_, module)| examined.modules.contains(module))
        .collect();
    for module in &root.modules {
        for (file, source) in files(folder, module) {
            for path in source.paths {
                let first = &path[0];
                let to = if examined.modules.contains(first) { Some(first) } else { exports.get(first) };
                if let Some(to) = to.filter(|to| *to != module) {
                    let file = file.strip_prefix(folder).unwrap().display().to_string();
                    let (from, to) = (module.clone(), to.clone());
                    examined.uses.insert(Use { from, to, file, path: path.join("::") });
                }
            }
        }
    }
    examined
}

/// Returns the files of a top-level module that are not tests.
fn files(folder: &Path, module: &str) -> Vec<(PathBuf, Source)> {
    let mut files = Vec::new();
    let mut waiting = vec![(folder.join(module), 1)];
    while let Some((place, depth)) = waiting.pop() {
        let candidates = [place.with_extension("rs"), place.join("mod.rs")];
        let file = candidates.into_iter().find(|path| path.is_file()).expect("a module has a file");
        let source = read(&file, depth);
        waiting.extend(source.modules.iter().map(|name| (place.join(name), depth + 1)));
        files.push((file, source));
    }
    files
}

/// Reads a file that is `depth` modules below the crate's root.
fn read(file: &Path, depth: usize) -> Source {
    parse(&tokens(&fs::read_to_string(file).unwrap()), depth)
}

fn parse(tokens: &[String], depth: usize) -> Source {
    let mut source = Source::default();
    // The number of open braces around each module that the file contains.
    let (mut braces, mut nested) = (0, Vec::new());
    let mut at = 0;
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token == text);
    while at < tokens.len() {
        match &*tokens[at] {
            "#" if is(at + 1, "[") || is(at + 1, "!") => {
                let end = closed(tokens, at + 1);
                let attribute = &tokens[at..end];
                let has = |text: &str| attribute.iter().any(|token| token == text);
                at = if has("cfg") && has("test") && !has("not") { item_end(tokens, end) } else { end };
                continue;
            }
            "mod" if is(at + 2, ";") => source.modules.push(tokens[at + 1].clone()),
            "mod" if is(at + 2, "{") => nested.push(braces),
            "use" if at > 0 && (is(at - 1, "pub") || is(at - 1, ")")) => {
                tree(tokens, at + 1, &[], &mut source.exports);
            }
            "crate" if is(at + 1, "::") => {
                tree(tokens, at + 2, &[], &mut source.paths);
            }
            "super" if !is(at.wrapping_sub(1), "::") => {
                let count = tokens[at..].chunks(2).take_while(|pair| pair[0] == "super").count();
                if count == depth + nested.len() && is(at + 2 * count - 1, "::") {
                    tree(tokens, at + 2 * count, &[], &mut source.paths);
                }
            }
            "{" => braces += 1,
            "}" => {
                braces -= 1;
                if nested.last() == Some(&braces) {
                    nested.pop();
                }
            }
            _ => {}
        }
        at += 1;
    }
    source
}

/// Reads the paths of a tree of paths, or one path, from `at` on. Returns the index of its end.
fn tree(tokens: &[String], mut at: usize, before: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token == text);
    let mut path = before.to_vec();
    loop {
        if is(at, "{") {
            at += 1;
            while !is(at, "}") {
                at = tree(tokens, at, &path, paths);
                at += usize::from(is(at, ","));
            }
            return at + 1;
        }
        path.push(tokens[at].clone());
        at += 1;
        if is(at, "as") {
            *path.last_mut().unwrap() = tokens[at + 1].clone();
            at += 2;
        }
        if !is(at, "::") {
            break;
        }
        at += 1;
        if is(at, "<") {
            break;
        }
    }
    if path.last().is_some_and(|name| name == "self") {
        path.pop();
    }
    paths.push(path);
    at
}

/// Returns the index after the bracket that closes the first one from `at` on.
fn closed(tokens: &[String], at: usize) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match &**token {
            "[" | "{" | "(" => depth += 1,
            "]" | "}" | ")" => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return index + 1;
        }
    }
    tokens.len()
}

/// Returns the index after the item that begins at `at`, with its attributes.
fn item_end(tokens: &[String], mut at: usize) -> usize {
    while tokens.get(at).is_some_and(|token| token == "#") {
        at = closed(tokens, at + 1);
    }
    let is_use = tokens[at..].iter().take(6).any(|token| token == "use");
    while at < tokens.len() {
        match &*tokens[at] {
            ";" | "," => return at + 1,
            "}" => return at,
            "{" if !is_use => return closed(tokens, at),
            "(" | "[" | "{" => at = closed(tokens, at),
            _ => at += 1,
        }
    }
    at
}

/// Returns names, `::` and single signs, without comments and texts in quotes.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let rest = &chars[at..];
        at += match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => rest.windows(2).position(|pair| pair == ['*', '/']).map_or(rest.len(), |end| end + 2),
            ['r', '#' | '"', ..] if raw_text(rest).is_some() => raw_text(rest).unwrap_or_default(),
            ['"', ..] => quoted(rest, '"'),
            ['\'', '\\', ..] | ['\'', _, '\'', ..] => quoted(rest, '\''),
            [':', ':', ..] => {
                tokens.push("::".to_owned());
                2
            }
            _ if is_name(c) => {
                let size = rest.iter().position(|c| !is_name(*c)).unwrap_or(rest.len());
                tokens.push(rest[..size].iter().collect());
                // The prefix of a raw byte string is no name.
                size
            }
            _ if c.is_whitespace() => 1,
            _ => {
                tokens.push(c.to_string());
                1
            }
        };
    }
    tokens
}

fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += 1 + usize::from(rest[at] == '\\');
    }
    at + 1
}

fn raw_text(rest: &[char]) -> Option<usize> {
    let marks = rest[1..].iter().take_while(|c| **c == '#').count();
    if rest.get(1 + marks) != Some(&'"') {
        return None;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', marks)).collect();
    let body = &rest[2 + marks..];
    body.windows(end.len()).position(|part| part == end).map(|place| 2 + marks + place + end.len())
}

#[test]
fn paths_are_found_wherever_they_stand() {
    let text = r##"
        // crate::comment
        use crate::{a, b::{self, c::D as E}, f::*};
        pub(crate) use g::{H, i::J};
        pub(in crate::k) fn l(_: &'static str, _: char) -> crate::m::N {
            let _ = ("crate::text", r#"crate::raw"#, '"', '\'', super::o(), super::super::p::q());
        }
        mod r { use super::super::s; use super::super::super::t; }
        #[cfg(test)] mod tests { use crate::u; }
        #[cfg(all(test, unix))] use crate::v::{W, X};
        #[cfg(not(test))] use crate::y;
        mod z;
        #[cfg(test)] mod excluded;
    "##;
    let source = parse(&tokens(text), 2);
    let joined = |paths: &[Vec<String>]| paths.iter().map(|path| path.join("::")).collect::<Vec<_>>().join(" ");
    assert_eq!(joined(&source.paths), "a b b::c::E f::* k m::N p::q t y");
    assert_eq!(joined(&source.exports), "g::H g::i::J");
    assert_eq!(source.modules, ["z"]);
}

#[test]
fn circles_and_upward_uses_are_found() {
    let used = |from: &str, to: &str| Use { from: from.into(), to: to.into(), file: "x.rs".into(), path: to.into() };
    let modules: BTreeSet<_> = ["a", "b", "c", "d"].map(str::to_owned).into();
    let layered = Crate { modules: modules.clone(), uses: [used("a", "b"), used("b", "c"), used("a", "c")].into() };
    assert!(circles(&layered).is_empty());
    let order = orders("# Map\n### `crates/x/src`\n| where | what |\n|---|---|\n| `a`, `b/` | e |\n| `c` | f `g` |\n");
    assert_eq!(order["x"], ["a", "b", "c"]);
    assert_eq!(upwards(&layered, &order["x"]), ["d is not in ARCHITECTURE.md"]);
    let circle = Crate { modules, uses: [used("a", "b"), used("b", "c"), used("c", "b"), used("c", "d")].into() };
    assert_eq!(circles(&circle).len(), 2);
    assert!(upwards(&circle, &order["x"])[1].contains("c uses b"));
}
