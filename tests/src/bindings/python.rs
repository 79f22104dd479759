//! Python stubs, module for module as componentize-py lays out its `wit_world`, so that an editor knows what a plugin is
//! handed. They hold dataclasses and enums only: what is a type for an editor is a class for a unit test too.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use wit_parser::{Docs, Function, Interface, PackageId, Resolve, Type, TypeDefKind, TypeId, TypeOwner};

use super::{HOOKS, interface, pascal, snake};

const HEAD: &str = "# Generated from sdk/wit; do not edit.\n";
const IMPORTS: &str = "\
from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import List, Optional, Protocol, Tuple, Union
";

pub(super) fn stubs(resolve: &Resolve, package: PackageId) -> Result<Vec<(String, String)>> {
    let mut files = vec![
        ("__init__.pyi".to_owned(), HEAD.to_owned()),
        ("imports/__init__.pyi".to_owned(), HEAD.to_owned()),
    ];
    for name in ["types", "host"] {
        let text = module(resolve, interface(resolve, package, name)?)?;
        files.push((format!("imports/{name}.pyi"), text));
    }
    let mut protocols = format!("{HEAD}{IMPORTS}\nfrom ..imports import types\n");
    for hook in HOOKS {
        writeln!(protocols, "from ..exports import {}", snake(hook))?;
    }
    for hook in HOOKS {
        let of = interface(resolve, package, hook)?;
        files.push((format!("exports/{}.pyi", snake(hook)), module_of_hook(resolve, of)?));
        write!(protocols, "\nclass {}(Protocol):\n", pascal(hook))?;
        docs(&mut protocols, "    ", &of.docs);
        for function in of.functions.values() {
            protocols.push_str("    @abstractmethod\n");
            declare(&mut protocols, resolve, function, "    ", Some("self"), None)?;
        }
    }
    files.push(("exports/__init__.pyi".to_owned(), protocols));
    Ok(files)
}

/// `types` or `host`: classes and functions.
fn module(resolve: &Resolve, of: &Interface) -> Result<String> {
    let mut text = HEAD.to_owned();
    docs(&mut text, "", &of.docs);
    text.push_str(IMPORTS);
    let borrows = of.types.values().any(|id| borrowed(resolve, *id));
    if borrows {
        text.push_str("\nfrom ..imports import types\n");
    }
    classes(&mut text, resolve, of)?;
    for function in of.functions.values() {
        text.push('\n');
        declare(&mut text, resolve, function, "", None, Some(of))?;
    }
    Ok(text)
}

fn module_of_hook(resolve: &Resolve, of: &Interface) -> Result<String> {
    let mut text = format!("{HEAD}{IMPORTS}\nfrom ..imports import types\n");
    classes(&mut text, resolve, of)?;
    Ok(text)
}

fn borrowed(resolve: &Resolve, id: TypeId) -> bool {
    matches!(&resolve.types[id].kind, TypeDefKind::Type(Type::Id(of)) if resolve.types[*of].owner != resolve.types[id].owner
        && matches!(resolve.types[*of].owner, TypeOwner::Interface(_)))
}

fn classes(text: &mut String, resolve: &Resolve, of: &Interface) -> Result<()> {
    for (name, id) in of.types.iter().filter(|(_, id)| !borrowed(resolve, **id)) {
        let definition = &resolve.types[*id];
        let name = pascal(name);
        match &definition.kind {
            TypeDefKind::Record(record) => {
                write!(text, "\n@dataclass\nclass {name}:\n")?;
                docs(text, "    ", &definition.docs);
                for field in &record.fields {
                    let ty = type_name(resolve, &field.ty, of)?;
                    writeln!(text, "    {}: {ty}", snake(&field.name))?;
                    docs(text, "    ", &field.docs);
                }
            }
            TypeDefKind::Variant(variant) => {
                let mut cases = Vec::new();
                for case in &variant.cases {
                    let case_name = format!("{name}_{}", pascal(&case.name));
                    write!(text, "\n@dataclass\nclass {case_name}:\n")?;
                    docs(text, "    ", &case.docs);
                    match &case.ty {
                        Some(ty) => writeln!(text, "    value: {}", type_name(resolve, ty, of)?)?,
                        None if case.docs.contents.is_none() => writeln!(text, "    pass")?,
                        None => {}
                    }
                    cases.push(case_name);
                }
                writeln!(text, "\n{name} = Union[{}]", cases.join(", "))?;
                docs(text, "", &definition.docs);
            }
            TypeDefKind::Enum(cases) => {
                write!(text, "\nclass {name}(Enum):\n")?;
                for (i, case) in cases.cases.iter().enumerate() {
                    writeln!(text, "    {} = {i}", snake(&case.name).to_uppercase())?;
                }
            }
            // Aliases are spelled out where they are used, as componentize-py does.
            TypeDefKind::Type(_) => {}
            other => bail!("{name}: a {} has no mapping yet", other.as_str()),
        }
    }
    Ok(())
}

/// `within` is the interface whose own types need no prefix; a protocol has none.
fn declare(
    text: &mut String,
    resolve: &Resolve,
    function: &Function,
    indent: &str,
    receiver: Option<&str>,
    within: Option<&Interface>,
) -> Result<()> {
    let mut params: Vec<String> = receiver.map(str::to_owned).into_iter().collect();
    let name_of = |ty: &Type| match within {
        Some(of) => type_name(resolve, ty, of),
        None => qualified(resolve, ty),
    };
    for param in &function.params {
        params.push(format!("{}: {}", snake(&param.name), name_of(&param.ty)?));
    }
    let result = function.result.as_ref().map_or(Ok("None".to_owned()), name_of)?;
    writeln!(text, "{indent}def {}({}) -> {result}:", snake(&function.name), params.join(", "))?;
    let inner = format!("{indent}    ");
    docs(text, &inner, &function.docs);
    if refuses(resolve, function) {
        writeln!(text, "{inner}# Raises: `componentize_py_types.Err(types.Refusal(...))`")?;
    }
    writeln!(text, "{inner}raise NotImplementedError")?;
    Ok(())
}

fn refuses(resolve: &Resolve, function: &Function) -> bool {
    matches!(&function.result, Some(Type::Id(id)) if matches!(resolve.types[*id].kind, TypeDefKind::Result(_)))
}

/// As seen from the interface's own module.
fn type_name(resolve: &Resolve, ty: &Type, within: &Interface) -> Result<String> {
    let own = |name: &str, id: TypeId| within.types.get(name) == Some(&id) && !borrowed(resolve, id);
    named(resolve, ty, &|name, id| {
        if own(name, id) { pascal(name) } else { format!("types.{}", pascal(name)) }
    })
}

/// As seen from beside all modules.
fn qualified(resolve: &Resolve, ty: &Type) -> Result<String> {
    named(resolve, ty, &|name, id| {
        let id = origin(resolve, id);
        let TypeOwner::Interface(owner) = resolve.types[id].owner else { return pascal(name) };
        let module = resolve.interfaces[owner].name.as_deref().unwrap_or_default();
        format!("{}.{}", snake(module), pascal(name))
    })
}

/// Where a type that was `use`d is defined.
fn origin(resolve: &Resolve, mut id: TypeId) -> TypeId {
    while let TypeDefKind::Type(Type::Id(of)) = resolve.types[id].kind {
        id = of;
    }
    id
}

fn named(resolve: &Resolve, ty: &Type, name_of: &dyn Fn(&str, TypeId) -> String) -> Result<String> {
    Ok(match ty {
        Type::Bool => "bool".to_owned(),
        Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::S8 | Type::S16 | Type::S32 | Type::S64 => {
            "int".to_owned()
        }
        Type::F32 | Type::F64 => "float".to_owned(),
        Type::Char | Type::String => "str".to_owned(),
        Type::Id(id) => match (&resolve.types[*id].name, &resolve.types[*id].kind) {
            // An alias of something simple is spelled out; an alias of a type of another module is that type.
            (Some(_), TypeDefKind::Type(of)) if !matches!(of, Type::Id(_)) => named(resolve, of, name_of)?,
            (Some(_), TypeDefKind::Type(Type::Id(of))) if is_alias(resolve, *of) => {
                named(resolve, &Type::Id(*of), name_of)?
            }
            (Some(name), _) => name_of(name, *id),
            (None, TypeDefKind::List(Type::U8)) => "bytes".to_owned(),
            (None, TypeDefKind::List(of)) => format!("List[{}]", named(resolve, of, name_of)?),
            (None, TypeDefKind::Option(of)) => format!("Optional[{}]", named(resolve, of, name_of)?),
            (None, TypeDefKind::Tuple(tuple)) => {
                let types: Result<Vec<_>> =
                    tuple.types.iter().map(|ty| named(resolve, ty, name_of)).collect();
                format!("Tuple[{}]", types?.join(", "))
            }
            (None, TypeDefKind::Result(result)) => match &result.ok {
                Some(ok) => named(resolve, ok, name_of)?,
                None => "None".to_owned(),
            },
            (None, other) => bail!("a {} has no mapping yet", other.as_str()),
        },
        other => bail!("{other:?} has no mapping yet"),
    })
}

fn is_alias(resolve: &Resolve, id: TypeId) -> bool {
    matches!(resolve.types[id].kind, TypeDefKind::Type(_))
}

fn docs(text: &mut String, indent: &str, docs: &Docs) {
    let Some(contents) = &docs.contents else { return };
    let lines: Vec<&str> = contents.trim().lines().collect();
    let said = match lines.as_slice() {
        [line] => format!("{indent}\"\"\"{line}\"\"\"\n"),
        lines => {
            let body: String = lines.iter().map(|line| format!("{indent}{line}\n")).collect();
            format!("{indent}\"\"\"\n{body}{indent}\"\"\"\n")
        }
    };
    text.push_str(&said);
}
