//! WASI preview 2 for command components: the same files, streams, limits and
//! waiting as preview 1 has, under the component model's names. The functions
//! block, as a worker does one thing at a time; no runtime and no thread is
//! needed for them. What is not here does not exist for a component.

mod cli;
mod clocks;
mod filesystem;
mod io;
mod sockets;

use wasmtime::component::{
    Component, ComponentExportIndex, ComponentNamedList, ComponentType, Lift, Linker, LinkerInstance, Lower, Resource,
    ResourceType,
};
use wasmtime::{Result, StoreContextMut};

use crate::wasi::{HasView, View};

/// The newest minor version whose functions are here. A component asks for one
/// of the same 0.2 and gets this one.
const VERSION: &str = "0.2.12";

/// What a component may import, by package.
const PACKAGES: &[(&str, &[&str])] = &[
    ("cli", cli::INTERFACES),
    ("clocks", clocks::INTERFACES),
    ("filesystem", filesystem::INTERFACES),
    ("io", io::INTERFACES),
    ("random", clocks::RANDOM),
    ("sockets", sockets::INTERFACES),
];

/// The most that a component may hand to one call of the host, in bytes.
pub const MAX_CALL: usize = 4 << 20;

/// Takes "wasi:PACKAGE/INTERFACE@0.2.MINOR" apart.
fn wasi_name(name: &str) -> Option<(&str, &str)> {
    let (path, version) = name.strip_prefix("wasi:")?.split_once('@')?;
    let minor = version.strip_prefix("0.2.")?;
    if minor.is_empty() || !minor.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    path.split_once('/')
}

/// Whether an import by this name is there.
pub fn provides(name: &str) -> bool {
    wasi_name(name).is_some_and(|(package, interface)| {
        PACKAGES.iter().any(|(p, interfaces)| *p == package && interfaces.contains(&interface))
    })
}

/// Whether an export by this name is what makes a component a command.
pub fn is_run(name: &str) -> bool {
    wasi_name(name) == Some(("cli", "run"))
}

/// Finds the function that runs the command. Another minor version has the same.
pub fn run_export(c: &Component) -> Option<ComponentExportIndex> {
    let instance = c.get_export_index(None, format!("wasi:cli/run@{VERSION}"))?;
    c.get_export_index(Some(&instance), "run")
}

/// Defines what a component may import. Of sockets it is what this one names.
pub fn add_to_linker<T: HasView>(l: &mut Linker<T>, c: &Component) -> Result<()> {
    io::add_to_linker(l)?;
    cli::add_to_linker(l)?;
    clocks::add_to_linker(l)?;
    filesystem::add_to_linker(l)?;
    sockets::add_to_linker(l, c)
}

/// An interface that is being defined.
struct Interface<'a, T: 'static>(LinkerInstance<'a, T>);

/// Opens wasi:PATH for definitions.
fn interface<'a, T>(l: &'a mut Linker<T>, path: &str) -> Result<Interface<'a, T>> {
    Ok(Interface(l.instance(&format!("wasi:{path}@{VERSION}"))?))
}

impl<T: HasView> Interface<'_, T> {
    /// Defines a function that returns something.
    fn func<P, R>(&mut self, name: &str, f: fn(&mut View, P) -> Result<R>) -> Result<&mut Self>
    where
        P: ComponentNamedList + Lift + 'static,
        R: ComponentType + Lower + 'static,
    {
        self.0.func_wrap(name, move |mut s: StoreContextMut<'_, T>, p: P| Ok((f(s.data_mut().view(), p)?,)))?;
        Ok(self)
    }

    /// Defines a function that returns nothing.
    fn act<P>(&mut self, name: &str, f: fn(&mut View, P) -> Result<()>) -> Result<&mut Self>
    where
        P: ComponentNamedList + Lift + 'static,
    {
        self.0.func_wrap(name, move |mut s: StoreContextMut<'_, T>, p: P| f(s.data_mut().view(), p))?;
        Ok(self)
    }

    /// Defines a resource whose handles lie in the table of the view.
    fn resource<R: Send + 'static>(&mut self, name: &str) -> Result<&mut Self> {
        self.0.resource(name, ResourceType::host::<R>(), |mut s, rep| {
            s.data_mut().view().handles.delete(Resource::<R>::new_own(rep))?;
            Ok(())
        })?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["wasi:io/poll@0.2.0", "wasi:io/poll@0.2.99", "wasi:cli/terminal-stdin@0.2.3"] {
            assert!(provides(good), "{good}");
        }
        for bad in [
            "",
            "wasi:io/poll",
            "wasi:io/poll@0.2",
            "wasi:io/poll@0.2.",
            "wasi:io/poll@0.3.0",
            "wasi:io/poll@0.2.0-rc-2023-11-10",
            "wasi:io@0.2.0",
            "wasi:io/network@0.2.0",
            "wasi:http/types@0.2.0",
            "other:io/poll@0.2.0",
            "wasi:cli/run@0.2.0",
        ] {
            assert!(!provides(bad), "{bad}");
        }
        assert!(is_run("wasi:cli/run@0.2.3") && !is_run("wasi:cli/run@0.3.0") && !is_run("wasi:cli/exit@0.2.3"));
    }
}
