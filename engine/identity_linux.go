package engine

import (
	"fmt"
	"syscall"
)

func changeTime(st *syscall.Stat_t) string { return fmt.Sprint(st.Ctim.Nano()) }
