// Package failpoint names the moments at which a crash may find something half
// done. In a program built with the tag "failpoint", the environment variable
// AXO_FAILPOINT=NAME kills the program with SIGKILL when it comes to that
// point. In any other build Hit does nothing.
package failpoint

// The points, in the order in which a first run of a module comes to them; the
// last ones are those of a trusted native program.
const (
	Recorded     = "wasm.recorded"  // journal entry of a worker, nothing else yet
	GroupMade    = "wasm.group"     // its control group
	Started      = "wasm.started"   // its process, not in the journal yet
	Attached     = "wasm.attached"  // its process in its group
	TempRecorded = "wasm.temp"      // entry of an artefact to be made
	Compiled     = "wasm.compiled"  // artefact made, not in place yet
	Sealed       = "wasm.sealed"    // artefact with its MAC, not in place yet
	Executed     = "wasm.executed"  // module runs
	Killed       = "wasm.killed"    // worker's process gone, its group not
	GroupRemoved = "wasm.ungrouped" // group gone, its journal entry not
	SpillMade    = "engine.spill"   // spill files made
	Created      = "engine.created" // sandbox made
	Exited       = "engine.exited"  // process ended, sandbox there
	Deleted      = "engine.deleted" // sandbox gone, result not returned
	NoneRecorded = "none.recorded"  // journal entry of a sandbox
	NoneGroup    = "none.group"     // its control groups
	NoneStarted  = "none.started"   // its first process
	NoneEnded    = "none.ended"     // its process ended, its groups there
	NoneRemoved  = "none.ungrouped" // groups gone, its journal entry not
	OCIRecorded  = "oci.recorded"   // journal entry of a container
	OCIGroup     = "oci.group"      // its control groups
	OCIStarted   = "oci.started"    // its first process, not in the journal yet
	OCIMade      = "oci.made"       // the container, nothing runs in it
	OCIEnded     = "oci.ended"      // its first process is gone, its groups are there
	OCIRemoved   = "oci.ungrouped"  // all gone but the journal entry
	OCIReady     = "oci.ready"      // a detached container is made and written down as such
	OCINoted     = "oci.noted"      // a program of a detached container is written down, not started
	OCIExecuted  = "oci.executed"   // it runs, and its caller does not know yet
	OCIForgotten = "oci.forgotten"  // the guest has forgotten a program, and its note is there
	OCIUnready   = "oci.unready"    // the removal of a detached container has begun
	OCIStill     = "oci.still"      // a container stands still, and its record says that it runs
	OCIPaused    = "oci.paused"     // its record too says that it stands still
	OCIWoken     = "oci.woken"      // it runs, and its record says that it stands still
	OCIResumed   = "oci.resumed"    // its record too says that it runs
	VMRecorded   = "vm.recorded"    // journal entry of a machine
	VMGroup      = "vm.group"       // its control groups
	VMStarted    = "vm.started"     // its VMM, not in the journal yet
	VMRestored   = "vm.restored"    // the machine runs, nobody has talked to it
	VMSynced     = "vm.synced"      // it is unlike all others, nothing runs in it
	VMEnded      = "vm.ended"       // its VMM is gone, its groups are there
	VMUngrouped  = "vm.ungrouped"   // its groups too, its sockets are there
	VMRemoved    = "vm.removed"     // all gone but the journal entry
	VMDisk       = "vm.disk"        // the disk of a template is made
	VMBooted     = "vm.booted"      // its machine has booted
	VMStopped    = "vm.stopped"     // the snapshot is taken, memory not in the file
	VMWhole      = "vm.whole"       // the template is complete, not in place
	VMPlaced     = "vm.placed"      // it is in place, the one before it not removed
	ImagePart    = "image.part"     // some of a blob came
	ImageBlob    = "image.blob"     // a blob is whole and has its name
	ImageFile    = "image.file"     // some of a layer is unpacked
	ImageLayer   = "image.layer"    // a layer is unpacked and verified, not in place
	ImagePlaced  = "image.placed"   // a layer is in place, the image not in the index
	ImageIndex   = "image.index"    // an index is written, not in place
	ImageNamed   = "image.named"    // the image is in the index
	ImageTrash   = "image.trash"    // gc has moved things away, not deleted them
	JournalHalf  = "journal.half"   // an entry under its temporary name

	SessionRecorded = "session.recorded"  // its record, nothing else yet
	SessionMade     = "session.made"      // its sandbox, and a record that it is being made
	SessionLive     = "session.live"      // all of it, and nobody has been told
	SessionDeleting = "session.deleting"  // a record that it is to go, and all of it
	SessionUnmade   = "session.unmade"    // its sandbox is gone, its record is there
	ExecRecorded    = "exec.recorded"     // a program's record, nothing else yet
	ExecStarted     = "exec.started"      // it runs, and nobody has been told
	ExecEnded       = "exec.ended"        // its end is written down, and nobody has been told
	Recovered       = "session.recovered" // a new process has found all there is

	SnapshotRecorded = "snapshot.recorded" // its record, nothing else yet
	SnapshotTaken    = "snapshot.taken"    // it is the driver's, and a record that it is being taken
	SnapshotKept     = "snapshot.kept"     // all of it, and nobody has been told
	SnapshotDeleting = "snapshot.deleting" // a record that it is to go, and all of it
	ForkRecorded     = "fork.recorded"     // the records of copies, nothing else yet
	Forked           = "fork.made"         // the copies are there, and records that they are being made

	RunRecorded = "run.recorded" // the record of a run that lasts, nothing else yet
	RunMade     = "run.made"     // its sandbox, and a record that it is being made
	RunStarted  = "run.started"  // its program runs
	RunExited   = "run.exited"   // how it ended is written down, and its sandbox is there
	RunUnmade   = "run.unmade"   // its sandbox is gone, its result is not written down

	VMStill        = "vm.still"        // a machine stands still, and its record says that it runs
	VMPaused       = "vm.paused"       // its record too says that it stands still
	VMWoken        = "vm.woken"        // it runs, its guest has not the time, and its record says that it stands still
	VMResumed      = "vm.resumed"      // its guest has the time, and its record says that it stands still
	SessionPaused  = "session.paused"  // its sandbox is paused, and nobody has been told
	SessionResumed = "session.resumed" // its sandbox goes on, and nobody has been told
)

// Wasm, OCI and None are the points that a run of each tier comes to, Image those
// of a pull, Session those of the daemon while a sandbox is made, used and deleted.
var (
	Wasm = []string{Recorded, GroupMade, Started, Attached, TempRecorded, Compiled, Sealed, Executed, SpillMade, Killed, GroupRemoved, Created, Exited, Deleted, JournalHalf}
	OCI  = []string{OCIRecorded, OCIGroup, OCIStarted, OCIMade, OCIEnded, OCIRemoved, Created, Exited, Deleted, JournalHalf}
	// Detached are those of a detached container.
	Detached = []string{OCIRecorded, OCIGroup, OCIStarted, OCIMade, OCIReady, OCINoted, OCIExecuted, OCIForgotten, OCIUnready, OCIEnded, OCIRemoved}
	Image    = []string{ImagePart, ImageBlob, ImageFile, ImageLayer, ImagePlaced, ImageIndex, ImageNamed}
	VM       = []string{VMRecorded, VMGroup, VMStarted, VMRestored, VMSynced, VMEnded, VMUngrouped, VMRemoved, Created, Exited, Deleted, JournalHalf}
	// Template are those of the build of a template for machines.
	Template = []string{VMDisk, VMStarted, VMBooted, VMStopped, VMWhole, VMPlaced}
	None     = []string{NoneRecorded, NoneGroup, NoneStarted, NoneEnded, NoneRemoved, Created, Exited, Deleted, JournalHalf}

	// Copy are those of the daemon where a sandbox is copied.
	Copy = []string{SnapshotRecorded, SnapshotTaken, SnapshotKept, SnapshotDeleting, ForkRecorded, Forked}
	// Pause are those of the daemon where a machine is paused, Resume those where it
	// goes on.
	Pause  = []string{VMStill, VMPaused, SessionPaused}
	Resume = []string{VMWoken, VMResumed, SessionResumed}
	// Freeze and Thaw are those where it is a container.
	Freeze = []string{OCIStill, OCIPaused, SessionPaused}
	Thaw   = []string{OCIWoken, OCIResumed, SessionResumed}
	// Run are those of a run that lasts.
	Run = []string{RunRecorded, RunMade, RunStarted, RunExited, RunUnmade}
	// Session are those of the daemon.
	Session = []string{SessionRecorded, SessionMade, SessionLive, ExecRecorded, ExecStarted, ExecEnded, SessionDeleting, SessionUnmade}
)
