;; Prints its arguments after the second, each with a NUL, as the conformance suite wants it. The
;; adapter of preview 1 modules takes only short ones.
(component
  (import "wasi:cli/environment@0.2.0" (instance $environment (export "get-arguments" (func (result (list string))))))
  (import "wasi:io/error@0.2.0" (instance $errors (export "error" (type (sub resource)))))
  (alias export $errors "error" (type $error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $out (sub resource)))
    (alias outer 1 $error (type $e))
    (export "error" (type $error (eq $e)))
    (type $why (variant (case "last-operation-failed" (own $error)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $why)))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $out)) (param "contents" (list u8)) (result (result (error $stream-error)))))))
  (alias export $streams "output-stream" (type $out))
  (import "wasi:cli/stdout@0.2.0" (instance $stdout
    (alias outer 1 $out (type $o))
    (export "output-stream" (type $out (eq $o)))
    (export "get-stdout" (func (result (own $out))))))
  (core module $libc
    (memory (export "memory") 1)
    (global $next (mut i32) (i32.const 1024))
    ;; Hands out memory and never takes it back.
    (func (export "realloc") (param $old i32) (param $was i32) (param $align i32) (param $size i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.set $next (i32.add (local.get $at) (local.get $size)))
      (block $fits
        (loop $grow
          (br_if $fits (i32.le_u (global.get $next) (i32.mul (memory.size) (i32.const 65536))))
          (br_if $grow (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))
          (unreachable)))
      (local.get $at)))
  (core instance $libc (instantiate $libc))
  (core func $list (canon lower (func $environment "get-arguments")
    (memory $libc "memory") (realloc (func $libc "realloc")) string-encoding=utf8))
  (core func $get (canon lower (func $stdout "get-stdout")))
  (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush") (memory $libc "memory")))
  (core module $m
    (import "libc" "memory" (memory 1))
    (import "host" "list" (func $list (param i32)))
    (import "host" "get" (func $get (result i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (data (i32.const 32) "\00=")
    (global $out (mut i32) (i32.const 0))
    ;; Writes 4,096 bytes at a time, as much as every host takes.
    (func $print (param $at i32) (param $len i32)
      (local $n i32)
      (block $done
        (loop $more
          (br_if $done (i32.eqz (local.get $len)))
          (local.set $n (select (i32.const 4096) (local.get $len) (i32.gt_u (local.get $len) (i32.const 4096))))
          (call $write (global.get $out) (local.get $at) (local.get $n) (i32.const 16))
          (if (i32.load8_u (i32.const 16)) (then (unreachable)))
          (local.set $at (i32.add (local.get $at) (local.get $n)))
          (local.set $len (i32.sub (local.get $len) (local.get $n)))
          (br $more))))
    (func (export "run") (result i32)
      (local $i i32) (local $item i32)
      (call $list (i32.const 0)) ;; address and length of the list
      (global.set $out (call $get))
      (local.set $i (i32.const 2))
      (block $done
        (loop $more
          (br_if $done (i32.ge_u (local.get $i) (i32.load (i32.const 4))))
          (local.set $item (i32.add (i32.load (i32.const 0)) (i32.mul (local.get $i) (i32.const 8))))
          (call $print (i32.load (local.get $item)) (i32.load offset=4 (local.get $item)))
          (call $print (i32.const 32) (i32.const 1))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br $more)))
      (i32.const 0)))
  (core instance $i (instantiate $m
    (with "libc" (instance $libc))
    (with "host" (instance (export "list" (func $list)) (export "get" (func $get)) (export "write" (func $write))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $e (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $e)))
