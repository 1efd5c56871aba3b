;; Asks for a TCP socket, and succeeds if it is told that access is denied.
(component
  (import "wasi:sockets/network@0.2.0" (instance $network
    (export "network" (type (sub resource)))
    (type $code (enum "unknown" "access-denied" "not-supported" "invalid-argument" "out-of-memory" "timeout"
      "concurrency-conflict" "not-in-progress" "would-block" "invalid-state" "new-socket-limit"
      "address-not-bindable" "address-in-use" "remote-unreachable" "connection-refused" "connection-reset"
      "connection-aborted" "datagram-too-large" "name-unresolvable" "temporary-resolver-failure"
      "permanent-resolver-failure"))
    (export "error-code" (type (eq $code)))
    (type $family (enum "ipv4" "ipv6"))
    (export "ip-address-family" (type (eq $family)))))
  (alias export $network "error-code" (type $code))
  (alias export $network "ip-address-family" (type $family))
  (import "wasi:sockets/tcp@0.2.0" (instance $tcp
    (export "tcp-socket" (type $socket (sub resource)))
    (export "[method]tcp-socket.is-listening" (func (param "self" (borrow $socket)) (result bool)))))
  (alias export $tcp "tcp-socket" (type $socket))
  (import "wasi:sockets/tcp-create-socket@0.2.0" (instance $create
    (alias outer 1 $code (type $c))
    (export "error-code" (type $code (eq $c)))
    (alias outer 1 $family (type $f))
    (export "ip-address-family" (type $family (eq $f)))
    (alias outer 1 $socket (type $s))
    (export "tcp-socket" (type $socket (eq $s)))
    (export "create-tcp-socket"
      (func (param "address-family" $family) (result (result (own $socket) (error $code)))))))
  (core module $mem (memory (export "memory") 1))
  (core instance $mem (instantiate $mem))
  (core func $create (canon lower (func $create "create-tcp-socket") (memory $mem "memory")))
  (core module $m
    (import "net" "create" (func $create (param i32 i32)))
    (import "mem" "memory" (memory 1))
    (func (export "run") (result i32)
      (call $create (i32.const 0) (i32.const 16))
      ;; err, and the second code
      (i32.eqz (i32.and
        (i32.eq (i32.load8_u (i32.const 16)) (i32.const 1))
        (i32.eq (i32.load8_u (i32.const 20)) (i32.const 1))))))
  (core instance $i (instantiate $m
    (with "net" (instance (export "create" (func $create))))
    (with "mem" (instance $mem))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $e (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $e)))
