package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command says what to start.
type Command struct {
	Path string // looked up in PATH if it has no slash
	Args []string
	// Env is added to this program's own environment.
	Env []string
	Dir string
	// Stdin is read if set. Stdout and Stderr, if nil, are kept by the process: see [Process.Stdout].
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Process is a process that the lab started.
type Process struct {
	cmd            *exec.Cmd
	stdout, stderr tail
	done           chan struct{}
	err            error
}

// PID gives the process ID on the host.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err gives how the process ended: nil for exit status 0. Valid once Done is closed.
func (p *Process) Err() error { <-p.done; return p.err }

// Stdout gives the end of what the process wrote to its standard output, 64 KiB at most, if Command.Stdout was nil.
func (p *Process) Stdout() string { return p.stdout.String() }

// Stderr gives the end of what the process wrote to its standard error, 64 KiB at most, if Command.Stderr was nil.
func (p *Process) Stderr() string { return p.stderr.String() }

// Signal sends a signal to the process and those of its group.
func (p *Process) Signal(sig syscall.Signal) error { return syscall.Kill(-p.PID(), sig) }

// Kill kills the process and those of its group.
func (p *Process) Kill() {
	select {
	case <-p.done: // its ID may be another's by now
	default:
		_ = p.Signal(syscall.SIGKILL) // fails only if it ended meanwhile
	}
}

// Stop asks the process to end with SIGTERM and kills it after grace. It gives how it ended.
func (p *Process) Stop(grace time.Duration) error {
	select {
	case <-p.done:
		return p.err
	default:
	}
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(grace):
		p.Kill()
		<-p.done
	}
	return p.err
}

// target is where a process is started.
type target struct {
	ns     *Namespace
	cgroup *containerCgroup // nil: this program's own
	init   *initSpec        // nil: no namespaces but the network's
}

// spawner starts processes from one thread that lives as long as the lab: the kernel sends a parent-death signal when
// the thread that started a process ends, not the program.
type spawner struct {
	requests chan func()
	ended    chan struct{} // the thread has

	mu      sync.Mutex
	procs   map[*Process]struct{}
	closing bool
}

func newSpawner(host *Namespace) *spawner {
	s := &spawner{requests: make(chan func()), ended: make(chan struct{}), procs: map[*Process]struct{}{}}
	go func() {
		defer close(s.ended)
		runtime.LockOSThread() // never unlocked: see onThread
		for f := range s.requests {
			f()
			if err := unix.Setns(host.fd, unix.CLONE_NEWNET); err != nil {
				panic(fmt.Sprintf("lab: return to the host's network namespace: %v", err))
			}
		}
	}()
	return s
}

func (s *spawner) start(c Command, t target) (*Process, error) {
	path, err := exec.LookPath(c.Path)
	if err != nil {
		return nil, fmt.Errorf("start in %s: %w", t.ns.Name, err)
	}
	p := &Process{done: make(chan struct{})}
	cmd := &exec.Cmd{Path: path, Args: append([]string{c.Path}, c.Args...), Env: append(os.Environ(), c.Env...),
		Dir: c.Dir, Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// A process that leaves children behind keeps the pipes open: do not wait for those.
	cmd.WaitDelay = time.Second
	if cmd.Stdout == nil {
		cmd.Stdout = &p.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.stderr
	}
	if t.cgroup != nil {
		dir, err := os.Open(t.cgroup.dir)
		if err != nil {
			return nil, fmt.Errorf("start %s in %s: %w", c.Path, t.ns.Name, err)
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	if t.init != nil {
		if err := t.init.wrap(cmd); err != nil {
			return nil, fmt.Errorf("start %s in %s: %w", c.Path, t.ns.Name, err)
		}
	}
	p.cmd = cmd
	if err := s.launch(p, t.ns); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", c.Path, t.ns.Name, err)
	}
	go func() {
		p.err = cmd.Wait()
		if errors.Is(p.err, exec.ErrWaitDelay) {
			p.err = nil
		}
		s.mu.Lock()
		delete(s.procs, p)
		s.mu.Unlock()
		close(p.done)
	}()
	return p, nil
}

// launch starts a process on the spawner's thread.
func (s *spawner) launch(p *Process, ns *Namespace) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errors.New("the lab is down")
	}
	started := make(chan error)
	s.requests <- func() {
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			started <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		started <- p.cmd.Start()
	}
	if err := <-started; err != nil {
		return err
	}
	s.procs[p] = struct{}{}
	return nil
}

// killAll kills every process that still runs, waits for them, and lets no other start.
func (s *spawner) killAll() {
	s.mu.Lock()
	s.closing = true
	var procs []*Process
	for p := range s.procs {
		procs = append(procs, p)
	}
	s.mu.Unlock()
	for _, p := range procs {
		p.Kill()
	}
	for _, p := range procs {
		<-p.done
	}
}

// close ends the thread; killAll has been called.
func (s *spawner) close() {
	close(s.requests)
	<-s.ended
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 64 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if len(t.buf) > 2*tailSize {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailSize:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf[max(0, len(t.buf)-tailSize):])
}
