//! TypeScript declarations, as componentize-qjs maps the contract: 64-bit integers are numbers, an absent value is `null`,
//! a refusal is thrown.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use wit_parser::{Docs, Function, Interface, PackageId, Resolve, Type, TypeDefKind, TypeId, TypeOwner};

use super::{HOOKS, camel, interface, pascal};

const HEAD: &str = "\
// Generated from sdk/wit; do not edit. One ambient module per interface of the contract.
//
// 64-bit integers are numbers (money stays below 2^53 minor units), an absent value is null, and a function that may refuse
// returns its answer or throws a Refusal.
";

pub(super) fn declarations(resolve: &Resolve, package: PackageId) -> Result<String> {
    let mut text = HEAD.to_owned();
    for name in ["types", "host"].iter().chain(&HOOKS) {
        let of = interface(resolve, package, name)?;
        module(&mut text, resolve, package, name, of)?;
    }
    Ok(text)
}

fn module(
    text: &mut String,
    resolve: &Resolve,
    package: PackageId,
    name: &str,
    of: &Interface,
) -> Result<()> {
    let package = &resolve.packages[package].name;
    let version = package.version.as_ref().map_or_else(String::new, |v| format!("@{v}"));
    text.push('\n');
    doc(text, "", &of.docs);
    writeln!(text, "declare module \"{}:{}/{name}{version}\" {{", package.namespace, package.name)?;
    let used: Vec<String> =
        of.types.iter().filter(|(_, id)| borrowed(resolve, **id)).map(|(name, _)| pascal(name)).collect();
    if !used.is_empty() {
        let from = format!("{}:{}/types{version}", package.namespace, package.name);
        writeln!(text, "  import type {{ {} }} from \"{from}\";\n", used.join(", "))?;
    }
    for (name, id) in of.types.iter().filter(|(_, id)| !borrowed(resolve, **id)) {
        type_definition(text, resolve, name, *id)?;
    }
    if HOOKS.contains(&name) {
        writeln!(text, "  /** What a plugin exports under the name `{}`. */", camel(name))?;
        writeln!(text, "  export interface {} {{", pascal(name))?;
        for function in of.functions.values() {
            doc(text, "    ", &function.docs);
            writeln!(text, "    {}{};", camel(&function.name), signature(resolve, function)?)?;
        }
        writeln!(text, "  }}")?;
    } else {
        for function in of.functions.values() {
            doc(text, "  ", &function.docs);
            writeln!(text, "  export function {}{};", camel(&function.name), signature(resolve, function)?)?;
        }
    }
    text.truncate(text.trim_end().len());
    writeln!(text, "\n}}")?;
    Ok(())
}

/// A type that the interface only `use`s.
fn borrowed(resolve: &Resolve, id: TypeId) -> bool {
    matches!(&resolve.types[id].kind, TypeDefKind::Type(Type::Id(of)) if resolve.types[*of].owner != resolve.types[id].owner
        && matches!(resolve.types[*of].owner, TypeOwner::Interface(_)))
}

fn type_definition(text: &mut String, resolve: &Resolve, name: &str, id: TypeId) -> Result<()> {
    let definition = &resolve.types[id];
    let name = pascal(name);
    doc(text, "  ", &definition.docs);
    match &definition.kind {
        TypeDefKind::Record(record) => {
            writeln!(text, "  export interface {name} {{")?;
            for field in &record.fields {
                doc(text, "    ", &field.docs);
                writeln!(text, "    {}: {};", camel(&field.name), type_name(resolve, &field.ty)?)?;
            }
            writeln!(text, "  }}")?;
        }
        TypeDefKind::Variant(variant) => {
            writeln!(text, "  export type {name} =")?;
            for case in &variant.cases {
                doc(text, "    ", &case.docs);
                let val = match &case.ty {
                    Some(ty) => format!("; val: {}", type_name(resolve, ty)?),
                    None => String::new(),
                };
                writeln!(text, "    | {{ tag: \"{}\"{val} }}", case.name)?;
            }
            text.truncate(text.trim_end().len());
            writeln!(text, ";")?;
        }
        TypeDefKind::Enum(cases) => {
            let cases: Vec<_> = cases.cases.iter().map(|case| format!("\"{}\"", case.name)).collect();
            writeln!(text, "  export type {name} = {};", cases.join(" | "))?;
        }
        TypeDefKind::Type(ty) => writeln!(text, "  export type {name} = {};", type_name(resolve, ty)?)?,
        other => bail!("{name}: a {} has no mapping yet", other.as_str()),
    }
    text.push('\n');
    Ok(())
}

fn signature(resolve: &Resolve, function: &Function) -> Result<String> {
    let mut params = Vec::new();
    for param in &function.params {
        params.push(format!("{}: {}", camel(&param.name), type_name(resolve, &param.ty)?));
    }
    let result = function.result.as_ref().map_or(Ok("void".to_owned()), |ty| type_name(resolve, ty))?;
    Ok(format!("({}): {result}", params.join(", ")))
}

fn type_name(resolve: &Resolve, ty: &Type) -> Result<String> {
    Ok(match ty {
        Type::Bool => "boolean".to_owned(),
        Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::S8 | Type::S16 | Type::S32 | Type::S64 => {
            "number".to_owned()
        }
        Type::F32 | Type::F64 => "number".to_owned(),
        Type::Char | Type::String => "string".to_owned(),
        Type::Id(id) => match (&resolve.types[*id].name, &resolve.types[*id].kind) {
            (Some(name), _) => pascal(name),
            (None, TypeDefKind::List(Type::U8)) => "Uint8Array".to_owned(),
            (None, TypeDefKind::List(of)) => format!("{}[]", type_name(resolve, of)?),
            (None, TypeDefKind::Option(of)) => format!("{} | null", type_name(resolve, of)?),
            (None, TypeDefKind::Tuple(tuple)) => {
                let types: Result<Vec<_>> = tuple.types.iter().map(|ty| type_name(resolve, ty)).collect();
                format!("[{}]", types?.join(", "))
            }
            // What is thrown is not part of a TypeScript signature.
            (None, TypeDefKind::Result(result)) => match &result.ok {
                Some(ok) => type_name(resolve, ok)?,
                None => "void".to_owned(),
            },
            (None, other) => bail!("a {} has no mapping yet", other.as_str()),
        },
        other => bail!("{other:?} has no mapping yet"),
    })
}

fn doc(text: &mut String, indent: &str, docs: &Docs) {
    let Some(contents) = &docs.contents else { return };
    let lines: Vec<&str> = contents.trim().lines().collect();
    let said = match lines.as_slice() {
        [line] => format!("{indent}/** {line} */\n"),
        lines => {
            let body: String = lines.iter().map(|line| format!("{indent} * {line}\n")).collect();
            format!("{indent}/**\n{body}{indent} */\n")
        }
    };
    text.push_str(&said);
}
