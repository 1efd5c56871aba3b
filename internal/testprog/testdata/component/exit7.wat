;; Ends with status 7, which the adapter of preview 1 modules cannot say.
(component
  (import "wasi:cli/exit@0.2.12" (instance $exit (export "exit-with-code" (func (param "status-code" u8)))))
  (core func $exit (canon lower (func $exit "exit-with-code")))
  (core module $m
    (import "exit" "code" (func $exit (param i32)))
    (func (export "run") (result i32) (call $exit (i32.const 7)) (unreachable)))
  (core instance $i (instantiate $m (with "exit" (instance (export "code" (func $exit))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $e (export "run" (func $run)))
  (export "wasi:cli/run@0.2.12" (instance $e)))
