// Package conformance runs the Gateway API's own suite against a cluster with Seine, or, as a control that the suite
// can fail, against one without a mesh: see run.sh.
package conformance

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/features"

	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
)

var (
	control     = flag.Bool("control", false, "there is no mesh: namespaces get no labels, and what fails fails sooner")
	resultsPath = flag.String("results", "", "file to write to, for each test, 'passed', 'failed' or 'unsupported' and its name")
	version     = flag.String("seine-version", "", "version of Seine, for the report")
)

// What docs/WAYPOINT.md says that waypoints do, in the suite's words. A feature that is not named here is reported as
// unsupported and its tests are skipped.
var supported = []features.FeatureName{
	features.SupportMesh,
	features.SupportHTTPRoute,
	features.SupportGRPCRoute,

	features.SupportMeshClusterIPMatching,
	features.SupportMeshConsumerRoute,
	features.SupportMeshHTTPRouteBackendRequestHeaderModification,
	features.SupportMeshHTTPRouteNamedRouteRule,
	features.SupportMeshHTTPRouteQueryParamMatching,
	features.SupportMeshHTTPRouteRedirectPath,
	features.SupportMeshHTTPRouteRedirectPort,
	features.SupportMeshHTTPRouteRewritePath,
	features.SupportMeshHTTPRouteSchemeRedirect,

	// Features of HTTPRoute that tests for meshes name, too.
	features.SupportHTTPRoute303RedirectStatusCode,
	features.SupportHTTPRoute307RedirectStatusCode,
	features.SupportHTTPRoute308RedirectStatusCode,
	features.SupportHTTPRouteParentRefPort,
	features.SupportHTTPRouteResponseHeaderModification,
}

// What docs/INGRESS.md says that Gateways of class seine do.
var ingress = []features.FeatureName{
	features.SupportGateway,
	features.SupportHTTPRoute,
	features.SupportGRPCRoute,
	features.SupportReferenceGrant,
	features.SupportTLSRoute,
	features.SupportTLSRouteModeMixed,
	features.SupportTLSRouteModeTerminate,
	features.SupportTCPRoute,
	features.SupportBackendTLSPolicy,
	features.SupportBackendTLSPolicySANValidation,

	features.SupportGatewayFrontendClientCertificateValidation,
	features.SupportGatewayFrontendClientCertificateValidationInsecureFallback,
	features.SupportGatewayHTTPListenerIsolation,
	features.SupportGatewayHTTPSListenerDetectMisdirectedRequests,
	features.SupportGatewayInfrastructure,
	features.SupportGatewayPort8080,

	features.SupportHTTPRoute303RedirectStatusCode,
	features.SupportHTTPRoute307RedirectStatusCode,
	features.SupportHTTPRoute308RedirectStatusCode,
	features.SupportHTTPRouteBackendProtocolH2C,
	features.SupportHTTPRouteBackendProtocolWebSocket,
	features.SupportHTTPRouteBackendRequestHeaderModification,
	features.SupportHTTPRouteBackendTimeout,
	features.SupportHTTPRouteCORS,
	features.SupportHTTPRouteHostRewrite,
	features.SupportHTTPRouteMethodMatching,
	features.SupportHTTPRouteNamedRouteRule,
	features.SupportHTTPRouteParentRefPort,
	features.SupportHTTPRoutePathRedirect,
	features.SupportHTTPRoutePathRewrite,
	features.SupportHTTPRoutePortRedirect,
	features.SupportHTTPRouteQueryParamMatching,
	features.SupportHTTPRouteRequestMirror,
	features.SupportHTTPRouteRequestMultipleMirrors,
	features.SupportHTTPRouteRequestPercentageMirror,
	features.SupportHTTPRouteRequestTimeout,
	features.SupportHTTPRouteResponseHeaderModification,
	features.SupportHTTPRouteRetry,
	features.SupportHTTPRouteSchemeRedirect,
}

// TestIngress has no control without a mesh: without one no Gateway has an address.
func TestIngress(t *testing.T) {
	options := conformance.DefaultOptions(t)
	options.GatewayClassName = "seine"
	options.ConformanceProfiles = []suite.ConformanceProfileName{
		suite.GatewayHTTPConformanceProfileName,
		suite.GatewayGRPCConformanceProfileName,
		suite.GatewayTLSConformanceProfileName,
		suite.GatewayTCPConformanceProfileName,
	}
	options.SupportedFeatures = ingress
	options.Implementation = implementation()
	// Its backends are in the mesh, so that the way to them is a tunnel.
	options.NamespaceLabels = map[string]string{"seine.dev/mesh": "enabled"}
	options.Hook = record(t)
	conformance.RunConformanceWithOptions(t, options)
}

func implementation() confv1.Implementation {
	return confv1.Implementation{
		Organization: "seine",
		Project:      "seine",
		URL:          "https://seine.dev",
		Version:      *version,
		Contact:      []string{"https://seine.dev"},
	}
}

func TestMesh(t *testing.T) {
	options := conformance.DefaultOptions(t)
	options.ConformanceProfiles = []suite.ConformanceProfileName{
		suite.MeshHTTPConformanceProfileName,
		suite.MeshGRPCConformanceProfileName,
	}
	options.SupportedFeatures = supported
	options.Implementation = implementation()
	// Without a mesh, of the suite's three right answers in a row some come by luck.
	options.TimeoutConfig.RequiredConsecutiveSuccesses = 20
	if *control {
		// MeshBasic, which needs no mesh, has to pass in it: 20 answers come within two seconds.
		options.TimeoutConfig.MaxTimeToConsistency = 5 * time.Second
	} else {
		options.NamespaceLabels = map[string]string{
			"seine.dev/mesh":         "enabled",
			"seine.dev/use-waypoint": "waypoint",
		}
	}
	options.Hook = record(t)
	conformance.RunConformanceWithOptions(t, options)
}

// record returns a hook that writes each test's result to the file of results as soon as it is there.
func record(t *testing.T) func(*testing.T, suite.ConformanceTest, *suite.ConformanceTestSuite) {
	if *resultsPath == "" {
		return nil
	}
	file, err := os.Create(*resultsPath)
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	var writing sync.Mutex
	return func(t *testing.T, test suite.ConformanceTest, _ *suite.ConformanceTestSuite) {
		result := "passed"
		switch {
		case t.Failed():
			result = "failed"
		case t.Skipped():
			result = "unsupported"
		}
		writing.Lock()
		defer writing.Unlock()
		fmt.Fprintln(file, result, test.ShortName)
	}
}
