//! clang's syntax tree, as much of it as the rules look at.

use serde::Deserialize;
use serde::de::IgnoredAny;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    #[serde(default)]
    pub id: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub name: String,
    pub loc: Option<Location>,
    pub range: Option<Range>,
    #[serde(rename = "type")]
    pub ty: Option<Type>,
    #[serde(default)]
    pub is_implicit: bool,
    #[serde(default)]
    pub storage_class: String,
    #[serde(default)]
    pub cast_kind: String,
    #[serde(default)]
    pub tag_used: String,
    #[serde(default)]
    pub bases: Vec<IgnoredAny>,
    #[serde(default)]
    pub previous_decl: String,
    pub referenced_decl: Option<Reference>,
    #[serde(default)]
    pub referenced_member_decl: String,
    pub value: Option<serde_json::Value>,
    #[serde(default)]
    pub inner: Vec<Node>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Type {
    pub qual_type: String,
}

#[derive(Deserialize)]
pub struct Reference {
    pub id: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub name: String,
}

#[derive(Deserialize)]
pub struct Range {
    pub begin: Location,
    pub end: Location,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Location {
    file: Option<String>,
    line: Option<usize>,
    spelling_loc: Option<Box<Location>>,
    expansion_loc: Option<Box<Location>>,
}

impl Node {
    /// The whole tree. It is deep: call this on a large stack.
    pub fn parse(json: &[u8]) -> serde_json::Result<Node> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        reader.disable_recursion_limit();
        Node::deserialize(&mut reader)
    }

    /// Its type as written, or an empty string.
    pub fn type_name(&self) -> &str {
        self.ty.as_ref().map_or("", |ty| &ty.qual_type)
    }

    pub fn is_function(&self) -> bool {
        matches!(self.kind.as_str(), "FunctionDecl" | "CXXMethodDecl")
    }

    /// The number that `#define NAME(n) clang::annotate("NAME", n)` left on this declaration.
    pub fn annotated(&self) -> Option<i64> {
        let attribute = self.inner.iter().find(|child| child.kind == "AnnotateAttr")?;
        attribute.inner.iter().find_map(|child| child.value.as_ref()?.as_str()?.parse().ok())
    }
}

/// Where the tree is read. clang writes a file or a line only where it differs from the one before.
#[derive(Default)]
pub struct Position {
    pub file: String,
    pub line: usize,
}

impl Position {
    /// Follows the locations of a node, in the order in which they are written.
    pub fn enter(&mut self, node: &Node) {
        let begin = node.loc.iter().chain(node.range.iter().map(|range| &range.begin));
        begin.for_each(|location| self.follow(location));
    }

    /// Follows the last of a node's own locations, behind which its children come.
    pub fn pass(&mut self, node: &Node) {
        if let Some(range) = &node.range {
            self.follow(&range.end);
        }
    }

    fn follow(&mut self, location: &Location) {
        for part in [&location.spelling_loc, &location.expansion_loc].into_iter().flatten() {
            self.follow(part);
        }
        if let Some(file) = &location.file {
            self.file.clone_from(file);
        }
        if let Some(line) = location.line {
            self.line = line;
        }
    }
}

/// From lines of a text to what its `#line` directives say of them.
pub struct Lines {
    /// Of each directive: the line behind it, and what that line is called.
    starts: Vec<(usize, String, usize)>,
}

impl Lines {
    pub fn of(text: &str) -> Lines {
        let mut starts = vec![(1, "text".to_owned(), 1)];
        for (index, line) in text.lines().enumerate() {
            let Some((number, file)) = line.strip_prefix("#line ").and_then(|rest| rest.split_once(' ')) else {
                continue;
            };
            if let Ok(number) = number.parse() {
                starts.push((index + 2, file.trim_matches('"').to_owned(), number));
            }
        }
        Lines { starts }
    }

    /// `file:line`, as an author knows it.
    pub fn name(&self, line: usize) -> String {
        let (start, file, number) =
            self.starts.iter().rev().find(|(start, ..)| *start <= line).unwrap_or(&self.starts[0]);
        format!("{file}:{}", number + line.saturating_sub(*start))
    }
}

#[cfg(test)]
mod tests {
    use super::Lines;

    #[test]
    fn lines_are_called_what_the_directives_say() {
        let lines = Lines::of("#define A 1\n#line 1 \"a.h\"\nx\ny\n#line 7 \"b.metal\"\nz\n");
        assert_eq!([1, 3, 4, 6].map(|line| lines.name(line)), ["text:1", "a.h:1", "a.h:2", "b.metal:7"]);
    }
}
