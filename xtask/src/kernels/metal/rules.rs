//! Metal's rules that clang does not know, applied to its syntax tree.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use super::tree::{Lines, Node, Position};

const MAX_THREADS: i64 = 1024;
const MAX_BUFFERS: usize = 31;
const MAX_THREADGROUP_BYTES: usize = 32 * 1024;
/// What Metal takes without a buffer of its own.
const MAX_BLOCK_BYTES: usize = 4096;

/// Types of a parameter block that have one layout on every target.
const BLOCK_TYPES: [&str; 4] = ["uint", "int", "float", "unsigned int"];

pub struct Rules<'a> {
    main_file: &'a str,
    lines: &'a Lines,
    /// The kernel that a host launches, and its threads.
    launched: Option<(&'a str, u32)>,
    position: Position,
    parents: Vec<&'a Node>,
    findings: Vec<String>,
    /// Fields of the structures so far: name and type.
    structures: HashMap<&'a str, Vec<(&'a str, &'a str)>>,
    calls: CallGraph<'a>,
}

impl<'a> Rules<'a> {
    /// Every finding in a tree.
    pub fn apply(tree: &'a Node, file: &'a Path, lines: &'a Lines, launched: Option<(&'a str, u32)>) -> Vec<String> {
        let mut rules = Rules {
            main_file: file.to_str().unwrap_or_default(),
            lines,
            launched,
            position: Position::default(),
            parents: Vec::new(),
            findings: Vec::new(),
            structures: HashMap::new(),
            calls: CallGraph::default(),
        };
        rules.visit(tree);
        let recursive = rules.calls.recursive();
        rules.findings.extend(recursive.into_iter().map(|name| format!("{name}: recursion")));
        rules.findings
    }

    fn visit(&mut self, node: &'a Node) {
        self.position.enter(node);
        let line = self.position.line;
        let own = self.position.file == self.main_file;
        self.position.pass(node);
        if own && !node.is_implicit && !self.parents.iter().any(|parent| parent.is_implicit) {
            for finding in self.node(node) {
                let finding = format!("{}: {finding}", self.lines.name(line));
                if !self.findings.contains(&finding) {
                    self.findings.push(finding);
                }
            }
        }
        self.parents.push(node);
        node.inner.iter().for_each(|child| self.visit(child));
        self.parents.pop();
    }

    /// What is wrong with one node.
    fn node(&mut self, node: &'a Node) -> Vec<String> {
        let name = if node.name.is_empty() { "?" } else { &node.name };
        let ty = node.type_name();
        match node.kind.as_str() {
            "ParmVarDecl" | "VarDecl" | "FieldDecl" => self.variable(node, name, ty),
            "FunctionDecl" | "CXXMethodDecl" => self.function(node, name, ty),
            "CXXRecordDecl" => self.structure(node, name),
            "ImplicitCastExpr" => self.implicit_cast(node).into_iter().collect(),
            "CStyleCastExpr"
            | "CXXReinterpretCastExpr"
            | "CXXStaticCastExpr"
            | "CXXFunctionalCastExpr"
            | "CXXConstCastExpr"
                if ty.contains("__generic") && ty.ends_with(['*', '&']) =>
            {
                vec![format!("cast to {}: no address-space qualifier", without_generic(ty))]
            }
            "DeclRefExpr" => {
                if let Some(to) = node.referenced_decl.as_ref().filter(|to| is_function_kind(&to.kind)) {
                    self.call(&to.id);
                }
                Vec::new()
            }
            "MemberExpr" => {
                self.call(&node.referenced_member_decl);
                Vec::new()
            }
            "LambdaExpr" => vec!["lambda: not before Metal 3.2".to_owned()],
            "GotoStmt" | "IndirectGotoStmt" => vec!["goto".to_owned()],
            "CXXNewExpr" | "CXXDeleteExpr" | "CXXThrowExpr" | "CXXTryStmt" | "CXXDynamicCastExpr" | "CXXTypeidExpr" => {
                vec![format!("{} does not exist in Metal", node.kind)]
            }
            _ => Vec::new(),
        }
    }

    fn variable(&mut self, node: &'a Node, name: &'a str, ty: &'a str) -> Vec<String> {
        let mut findings = Vec::new();
        if ty.contains("__generic") {
            let ty = without_generic(ty);
            findings.push(format!("{name}: pointer or reference without an address-space qualifier ({ty})"));
        }
        if words(ty).any(|word| word == "double") || ty.contains("long long") {
            findings.push(format!("{name}: type {ty} does not exist in Metal"));
        }
        if node.kind == "VarDecl" && node.storage_class == "static" && self.parents.iter().any(|p| p.is_function()) {
            findings.push(format!("{name}: static local variable"));
        }
        if let ("FieldDecl", Some(parent)) = (node.kind.as_str(), self.parents.last()) {
            self.structures.entry(&parent.name).or_default().push((name, ty));
        }
        findings
    }

    fn function(&mut self, node: &'a Node, name: &'a str, ty: &'a str) -> Vec<String> {
        self.calls.declare(node);
        let mut findings = Vec::new();
        if ty.split('(').next().is_some_and(|result| result.contains("__generic")) {
            findings.push(format!("{name}: returns a pointer or reference without an address-space qualifier"));
        }
        if node.inner.iter().any(|child| child.kind.ends_with("KernelAttr")) {
            findings.extend(self.kernel(node, name));
        }
        findings
    }

    fn structure(&self, node: &Node, name: &str) -> Vec<String> {
        let mut findings = Vec::new();
        if node.tag_used == "union" {
            findings.push(format!("{name}: union"));
        }
        if !node.bases.is_empty() {
            findings.push(format!("{name}: derived class"));
        }
        findings
    }

    /// Limits of a kernel, its buffers and its parameter block.
    fn kernel(&self, node: &'a Node, name: &str) -> Vec<String> {
        let mut findings = Vec::new();
        let threads = node.annotated();
        match threads {
            None => findings.push(format!("{name}: no max_total_threads_per_threadgroup")),
            Some(threads) if !(32..=MAX_THREADS).contains(&threads) || threads % 32 != 0 => {
                findings.push(format!("{name}: {threads} threads, not a multiple of 32 up to {MAX_THREADS}"));
            }
            Some(_) => {}
        }
        if let (Some((launched, wanted)), Some(threads)) = (self.launched, threads)
            && launched == name
            && threads != i64::from(wanted)
        {
            findings.push(format!("{name}: declares {threads} threads, launched with {wanted}"));
        }
        let parameters: Vec<&Node> = node.inner.iter().filter(|child| child.kind == "ParmVarDecl").collect();
        let buffers: Vec<i64> = parameters.iter().filter_map(|parameter| parameter.annotated()).collect();
        if !buffers.iter().copied().eq(0..buffers.len() as i64) {
            findings.push(format!("{name}: buffers {buffers:?}, not numbered from 0 in order"));
        }
        if buffers.len() > MAX_BUFFERS {
            findings.push(format!("{name}: {} buffers, at most {MAX_BUFFERS}", buffers.len()));
        }
        for parameter in parameters.iter().filter(|parameter| parameter.type_name().contains("__constant")) {
            let block = words(parameter.type_name()).find(|word| !["const", "__constant", "__private"].contains(word));
            findings.extend(block.into_iter().flat_map(|block| self.block(block)));
        }
        let bytes = threadgroup_bytes(node);
        if bytes > MAX_THREADGROUP_BYTES {
            findings.push(format!("{name}: {bytes} bytes of threadgroup memory, at most {MAX_THREADGROUP_BYTES}"));
        }
        findings
    }

    /// What a parameter block may not have: fields whose layout differs between the targets, or too many.
    fn block(&self, block: &str) -> Vec<String> {
        let mut findings = Vec::new();
        let bytes = self.block_bytes(block, &mut findings);
        if bytes > MAX_BLOCK_BYTES {
            findings.push(format!("{block}: {bytes} bytes of parameters, at most {MAX_BLOCK_BYTES}"));
        }
        findings
    }

    fn block_bytes(&self, block: &str, findings: &mut Vec<String>) -> usize {
        let mut bytes = 0;
        for (field, ty) in self.structures.get(block).into_iter().flatten() {
            let (element, counts) = array(ty);
            let element_bytes = if self.structures.contains_key(element) {
                self.block_bytes(element, findings)
            } else {
                if !BLOCK_TYPES.contains(&element) {
                    findings.push(format!(
                        "parameter block field {field} is {ty}: only uint, int and float have one layout everywhere"
                    ));
                }
                4
            };
            bytes += element_bytes * counts;
        }
        bytes
    }

    /// Device, threadgroup or constant memory that becomes generic, as by a member function's `this`. A copy of a
    /// whole structure does that too, in OpenCL only.
    fn implicit_cast(&self, node: &Node) -> Option<String> {
        let from = node.inner.first()?.type_name();
        let qualified = ["__global", "__local", "__constant"].iter().any(|space| from.contains(space));
        let is_copy = self.parents.last().is_some_and(|parent| {
            parent.kind == "CXXConstructExpr"
                || (parent.kind == "CXXOperatorCallExpr" && refers_to(parent, "operator="))
        });
        (node.cast_kind == "AddressSpaceConversion" && qualified && !is_copy).then(|| {
            format!("conversion of {from} to the generic address space (a member function or an unqualified parameter)")
        })
    }

    fn call(&mut self, to: &'a str) {
        if let Some(function) = self.parents.iter().rev().find(|parent| parent.is_function()) {
            self.calls.add(&function.id, to);
        }
    }
}

/// The functions that each function mentions.
#[derive(Default)]
struct CallGraph<'a> {
    names: HashMap<&'a str, &'a str>,
    /// From a declaration to the one before it of the same function.
    previous: HashMap<&'a str, &'a str>,
    edges: HashMap<&'a str, Vec<&'a str>>,
}

impl<'a> CallGraph<'a> {
    fn declare(&mut self, node: &'a Node) {
        self.names.insert(&node.id, &node.name);
        if !node.previous_decl.is_empty() {
            self.previous.insert(&node.id, &node.previous_decl);
        }
    }

    fn add(&mut self, from: &'a str, to: &'a str) {
        let (from, to) = (self.first(from), self.first(to));
        self.edges.entry(from).or_default().push(to);
    }

    fn first(&self, mut id: &'a str) -> &'a str {
        while let Some(previous) = self.previous.get(id) {
            id = previous;
        }
        id
    }

    /// Names of functions that reach themselves.
    fn recursive(&self) -> BTreeSet<&'a str> {
        let reaches_itself = |id: &&&'a str| {
            let mut seen = HashSet::new();
            let mut open: Vec<&str> = self.edges[**id].clone();
            while let Some(next) = open.pop() {
                if seen.insert(next) {
                    open.extend(self.edges.get(next).into_iter().flatten());
                }
            }
            seen.contains(**id)
        };
        self.edges.keys().filter(reaches_itself).map(|id| self.names.get(id).copied().unwrap_or("?")).collect()
    }
}

/// Bytes of the kernel's threadgroup arrays, as far as their element's size is known here.
fn threadgroup_bytes(kernel: &Node) -> usize {
    let own = match kernel.kind.as_str() {
        "VarDecl" if kernel.type_name().contains("__local") => array_bytes(kernel.type_name()).next_multiple_of(16),
        _ => 0,
    };
    own + kernel.inner.iter().map(threadgroup_bytes).sum::<usize>()
}

/// Bytes of `__local T[n][m]`; 0 where T is not known.
fn array_bytes(ty: &str) -> usize {
    let (element, count) = array(ty);
    let bytes = match words(element).last() {
        Some("uchar" | "char" | "bool") => 1,
        Some("half" | "bfloat" | "ushort" | "short") => 2,
        Some("float" | "real" | "uint" | "int") => 4,
        Some("v4" | "float4") => 16,
        _ => 0,
    };
    count * bytes
}

/// Element type and number of elements of `T[n][m]`; of `T` itself, one.
fn array(ty: &str) -> (&str, usize) {
    let (element, counts) = ty.split_once('[').unwrap_or((ty, ""));
    (element.trim(), counts.split(['[', ']']).filter_map(|count| count.parse::<usize>().ok()).product())
}

fn is_function_kind(kind: &str) -> bool {
    matches!(kind, "FunctionDecl" | "CXXMethodDecl")
}

fn refers_to(node: &Node, name: &str) -> bool {
    node.referenced_decl.as_ref().is_some_and(|to| to.name == name)
        || node.inner.first().is_some_and(|child| refers_to(child, name))
}

fn without_generic(ty: &str) -> String {
    ty.replace("__generic ", "")
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}
