//! wasi:sockets: there are none. A component that is linked with them runs, and
//! is told that access is denied; what would take a socket can't be reached.

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentType, Lift, Linker, Lower, Resource, ResourceType};
use wasmtime::{Error, Result};

use super::{VERSION, interface, wasi_name};
use crate::wasi::HasView;

pub const INTERFACES: &[&str] =
    &["network", "instance-network", "ip-name-lookup", "tcp", "tcp-create-socket", "udp", "udp-create-socket"];

pub struct Network;
pub struct TcpSocket;
pub struct UdpSocket;
pub struct ResolveAddressStream;
pub struct IncomingDatagramStream;
pub struct OutgoingDatagramStream;

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code)] // they come from components
pub enum AddressFamily {
    #[component(name = "ipv4")]
    Ipv4,
    #[component(name = "ipv6")]
    Ipv6,
}

macro_rules! codes {
    ($($variant:ident = $name:literal,)*) => {
        #[derive(Clone, Copy, ComponentType, Lift, Lower)]
        #[component(enum)]
        #[repr(u8)]
        #[allow(dead_code)] // all make up the type
        pub enum ErrorCode {
            $(#[component(name = $name)] $variant,)*
        }
    };
}

codes! {
    Unknown = "unknown",
    AccessDenied = "access-denied",
    NotSupported = "not-supported",
    InvalidArgument = "invalid-argument",
    OutOfMemory = "out-of-memory",
    Timeout = "timeout",
    ConcurrencyConflict = "concurrency-conflict",
    NotInProgress = "not-in-progress",
    WouldBlock = "would-block",
    InvalidState = "invalid-state",
    NewSocketLimit = "new-socket-limit",
    AddressNotBindable = "address-not-bindable",
    AddressInUse = "address-in-use",
    RemoteUnreachable = "remote-unreachable",
    ConnectionRefused = "connection-refused",
    ConnectionReset = "connection-reset",
    ConnectionAborted = "connection-aborted",
    DatagramTooLarge = "datagram-too-large",
    NameUnresolvable = "name-unresolvable",
    TemporaryResolverFailure = "temporary-resolver-failure",
    PermanentResolverFailure = "permanent-resolver-failure",
}

type Denied<R> = Result<Resource<R>, ErrorCode>;

pub fn add_to_linker<T: HasView>(l: &mut Linker<T>, c: &Component) -> Result<()> {
    interface(l, "sockets/network")?.resource::<Network>("network")?;
    interface(l, "sockets/instance-network")?.func("instance-network", |v, ()| Ok(v.handles.push(Network)?))?;
    interface(l, "sockets/tcp-create-socket")?
        .func("create-tcp-socket", |_, _: (AddressFamily,)| -> Result<Denied<TcpSocket>> {
            Ok(Err(ErrorCode::AccessDenied))
        })?;
    interface(l, "sockets/udp-create-socket")?
        .func("create-udp-socket", |_, _: (AddressFamily,)| -> Result<Denied<UdpSocket>> {
            Ok(Err(ErrorCode::AccessDenied))
        })?;
    interface(l, "sockets/ip-name-lookup")?.func(
        "resolve-addresses",
        |_, _: (Resource<Network>, String)| -> Result<Denied<ResolveAddressStream>> {
            Ok(Err(ErrorCode::AccessDenied))
        },
    )?;
    // The rest are resources that nobody can have, and what is done with them.
    let engine = l.engine().clone();
    for (name, import) in c.component_type().imports(&engine) {
        let Some(("sockets", path)) = wasi_name(name) else { continue };
        let ComponentItem::ComponentInstance(instance) = import.ty else { continue };
        let mut at = l.instance(&format!("wasi:sockets/{path}@{VERSION}"))?;
        for (item, export) in instance.exports(&engine) {
            match export.ty {
                ComponentItem::Resource(_) => {
                    if let Some(ty) = own_resource(path, item) {
                        at.resource(item, ty, |_, _| Ok(()))?;
                    }
                }
                ComponentItem::ComponentFunc(_) if item.starts_with('[') => {
                    let what = format!("{item}: there is no such socket");
                    at.func_new(item, move |_, _, _, _| Err(Error::msg(what.clone())))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The resources that an interface declares itself.
fn own_resource(path: &str, item: &str) -> Option<ResourceType> {
    Some(match (path, item) {
        ("tcp", "tcp-socket") => ResourceType::host::<TcpSocket>(),
        ("udp", "udp-socket") => ResourceType::host::<UdpSocket>(),
        ("udp", "incoming-datagram-stream") => ResourceType::host::<IncomingDatagramStream>(),
        ("udp", "outgoing-datagram-stream") => ResourceType::host::<OutgoingDatagramStream>(),
        ("ip-name-lookup", "resolve-address-stream") => ResourceType::host::<ResolveAddressStream>(),
        _ => return None,
    })
}
