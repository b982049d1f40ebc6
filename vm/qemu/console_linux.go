package qemu

import (
	"io"
	"net"
	"sync"
)

// console reads the guest's serial port.
type console struct {
	tail  tail
	first chan struct{} // closed at the first byte
}

// run reads until QEMU ends, and closes conn. It must keep reading whatever
// happens to w: a full socket would stop the guest's output.
func (c *console) run(conn *net.UnixConn, w io.Writer) {
	defer conn.Close()
	var once sync.Once
	buf := make([]byte, 16<<10)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			once.Do(func() { close(c.first) })
			c.tail.Write(buf[:n])
			if w != nil {
				if _, err := w.Write(buf[:n]); err != nil {
					w = nil
				}
			}
		}
		if err != nil {
			return
		}
	}
}
