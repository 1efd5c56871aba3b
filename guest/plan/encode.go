package plan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
)

// Append appends the plan in a form that Parse reads without looking up names:
// the fields in their order, numbers as varints, a length before what has one. A
// process that has just been started would take longer to learn JSON than to make
// the container's mounts.
func (p *Plan) Append(b []byte) []byte { return appendValue(b, reflect.ValueOf(p).Elem()) }

// Parse reads what Append of the same build wrote.
func (p *Plan) Parse(b []byte) error { return parse(b, reflect.ValueOf(p).Elem()) }

// Append appends the machine in the form of a plan.
func (m *Machine) Append(b []byte) []byte { return appendValue(b, reflect.ValueOf(m).Elem()) }

// Parse reads what Append of the same build wrote.
func (m *Machine) Parse(b []byte) error { return parse(b, reflect.ValueOf(m).Elem()) }

func parse(b []byte, v reflect.Value) error {
	rest, err := parseValue(b, v)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("plan: %d bytes too many", len(rest))
	}
	return err
}

func appendValue(b []byte, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Bool:
		if v.Bool() {
			return append(b, 1)
		}
		return append(b, 0)
	case reflect.Int, reflect.Int64:
		return binary.AppendVarint(b, v.Int())
	case reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return binary.AppendUvarint(b, v.Uint())
	case reflect.String:
		return append(binary.AppendUvarint(b, uint64(v.Len())), v.String()...)
	case reflect.Pointer:
		if v.IsNil() {
			return append(b, 0)
		}
		return appendValue(append(b, 1), v.Elem())
	case reflect.Slice:
		b = binary.AppendUvarint(b, uint64(v.Len()))
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return append(b, v.Bytes()...)
		}
		for i := range v.Len() {
			b = appendValue(b, v.Index(i))
		}
		return b
	case reflect.Struct:
		for i := range v.NumField() {
			b = appendValue(b, v.Field(i))
		}
		return b
	}
	panic("plan: no form for a " + v.Type().String())
}

var errShort = errors.New("plan: it is cut off")

func length(b []byte) (int, []byte, error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return 0, nil, errShort
	}
	return int(n), b[size:], nil
}

func parseValue(b []byte, v reflect.Value) ([]byte, error) {
	switch v.Kind() {
	case reflect.Bool, reflect.Pointer:
		if len(b) == 0 {
			return nil, errShort
		}
		set := b[0] != 0
		b = b[1:]
		if v.Kind() == reflect.Bool {
			v.SetBool(set)
		} else if set {
			v.Set(reflect.New(v.Type().Elem()))
			return parseValue(b, v.Elem())
		}
		return b, nil
	case reflect.Int, reflect.Int64:
		n, size := binary.Varint(b)
		if size <= 0 {
			return nil, errShort
		}
		v.SetInt(n)
		return b[size:], nil
	case reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		n, size := binary.Uvarint(b)
		if size <= 0 {
			return nil, errShort
		}
		v.SetUint(n)
		return b[size:], nil
	case reflect.String:
		n, b, err := length(b)
		if err != nil {
			return nil, err
		}
		v.SetString(string(b[:n]))
		return b[n:], nil
	case reflect.Slice:
		n, b, err := length(b)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return b, nil
		}
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes(b[:n:n])
			return b[n:], nil
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			if b, err = parseValue(b, v.Index(i)); err != nil {
				return nil, err
			}
		}
		return b, nil
	case reflect.Struct:
		var err error
		for i := range v.NumField() {
			if b, err = parseValue(b, v.Field(i)); err != nil {
				return nil, err
			}
		}
		return b, nil
	}
	return nil, fmt.Errorf("plan: no form for a %s", v.Type())
}
