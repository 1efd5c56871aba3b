package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/axocoatl/isolation/axo/config"
	"github.com/axocoatl/isolation/axo/telemetry"
)

// openTelemetry makes the daemon's log and, where a collector is named, its traces.
func openTelemetry(ctx context.Context, l *config.Loaded) (*telemetry.Log, *telemetry.Traces, error) {
	var level slog.Level
	err := level.UnmarshalText([]byte(l.Log.Level))
	if err != nil {
		return nil, nil, &statusError{exitUsage, fmt.Errorf("log.level: %w", err)}
	}
	log, err := telemetry.NewLog(os.Stderr, telemetry.LogConfig{Format: l.Log.Format, Level: level, TenantRate: l.Log.TenantRate})
	if err != nil {
		return nil, nil, &statusError{exitUsage, err}
	}
	if l.Trace.Endpoint == "" && !telemetry.TracesWanted() {
		return log, nil, nil
	}
	c := telemetry.TraceConfig{Endpoint: l.Trace.Endpoint, Sample: l.Trace.Sample, Version: version, Logger: log.Logger}
	if l.Origin("trace.sample") == "default" {
		c.Sample = -1 // what OpenTelemetry's variables say
	}
	traces, err := telemetry.OpenTraces(ctx, c)
	if err != nil {
		return nil, nil, &statusError{exitUsage, err}
	}
	return log, traces, nil
}

// closeTraces sends the last spans. A collector that does not answer does not hold up
// the daemon's end for long.
func closeTraces(t *telemetry.Traces, log *telemetry.Log) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := t.Close(ctx); err != nil {
		log.Warn("send the last spans to the collector", "error", err)
	}
}
