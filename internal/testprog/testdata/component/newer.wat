;; Wants a function that a later version of an interface might have.
(component
  (import "wasi:random/random@0.2.99" (instance (export "get-better-random-u64" (func (result u64)))))
  (core module $m (func (export "run") (result i32) (i32.const 0)))
  (core instance $i (instantiate $m))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $e (export "run" (func $run)))
  (export "wasi:cli/run@0.2.99" (instance $e)))
