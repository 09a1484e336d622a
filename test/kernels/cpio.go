package main

import (
	"bytes"
	"fmt"
)

// cpio is an archive of the kind that the kernel unpacks as its first file system ("newc",
// Documentation/driver-api/early-userspace/buffer-format.rst). Archives may follow one another.
type cpio struct {
	b     bytes.Buffer
	inode int
}

const (
	cpioDirectory = 0o040000
	cpioRegular   = 0o100000
	cpioLink      = 0o120000
)

func (c *cpio) add(name string, mode int, data []byte) {
	c.inode++
	links := 1
	if mode&cpioDirectory == cpioDirectory && mode&cpioRegular == 0 {
		links = 2
	}
	fmt.Fprintf(&c.b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", c.inode, mode, 0, 0, links, 0,
		len(data), 0, 0, 0, 0, len(name)+1, 0)
	c.b.WriteString(name)
	c.b.WriteByte(0)
	c.pad()
	c.b.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.b.Len()%4 != 0 {
		c.b.WriteByte(0)
	}
}

func (c *cpio) directory(name string) { c.add(name, cpioDirectory|0o755, nil) }

func (c *cpio) file(name string, mode int, data []byte) { c.add(name, cpioRegular|mode, data) }

func (c *cpio) link(name, target string) { c.add(name, cpioLink|0o777, []byte(target)) }

// open gives the archive without its end: more may follow in another.
func (c *cpio) open() []byte { return bytes.Clone(c.b.Bytes()) }

// bytes ends the archive and gives it.
func (c *cpio) bytes() []byte {
	c.add("TRAILER!!!", 0, nil)
	for c.b.Len()%512 != 0 {
		c.b.WriteByte(0)
	}
	return c.b.Bytes()
}
