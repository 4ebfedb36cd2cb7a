//! One request: who, may they, what, and the answer.

use super::body::{self, Body};
use super::negotiate::{self, Accepted, Shape, Shown};
use super::path::{ResourcePath, Route, route, verb};
use super::{Context, REQUEST, access, discovery, openapi, reviews, streams, top};
use crate::auth::tokens::{self, Tokens};
use crate::auth::{self, Attributes, Identity, Peer};
use crate::kinds;
use crate::registry::options::{DeleteOptions, ListOptions, Query, WatchOptions, WriteOptions};
use crate::registry::{Part, Rescale, Resource, Subresource, Target, Verbs, Written};
use coracle_api::patch::PatchType;
use coracle_api::status::StatusError;
use coracle_api::table::IncludeObject;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Arc;

/// What is served beside the API itself.
const SERVED: &[&str] = &[
    "/version",
    "/metrics",
    "/healthz",
    "/livez",
    "/readyz",
    "/openapi/",
    "/openid/v1/jwks",
    "/.well-known/",
];

/// Group, version and plural of the kinds that somebody may add elsewhere.
const DEFINITIONS: (&str, &str, &str) = ("apiextensions.k8s.io", "v1", "customresourcedefinitions");
/// What is settled before it is answered.
const CSR: &str = "CertificateSigningRequest";
const OPENAPI_V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

type Response = hyper::Response<Body>;

/// What a request comes to.
enum Answer {
    Object {
        code: u16,
        object: Value,
        warnings: Vec<String>,
        accepted: Accepted,
    },
    Text {
        code: u16,
        text: String,
    },
    /// kubectl's encoding of OpenAPI v2.
    OpenApi(Vec<u8>),
    Events(Box<crate::registry::WatchStream>, Shown),
    /// Made elsewhere.
    Stream(streams::Response),
}

impl Answer {
    fn ok(object: Value, accepted: Accepted) -> Answer {
        Answer::Object { code: 200, object, warnings: Vec::new(), accepted }
    }

    fn not_found() -> Answer {
        Answer::Text { code: 404, text: "404 page not found\n".into() }
    }
}

/// Answers a request; never fails.
pub(super) async fn answer(
    context: Arc<Context>,
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let mut counted = "";
    let answered = handle(&context, &peer, request, &mut counted).await;
    let response = match answered {
        Ok(Answer::Object { code, object, warnings, accepted }) => {
            match negotiate::written(&object, accepted.format) {
                Ok(text) => {
                    let mut response = respond(code, accepted.content_type(), body::whole(text));
                    for warning in warnings {
                        // A text that is no header is left out: it is a courtesy.
                        let warning = format!("299 - {}", coracle_api::field::quoted(&warning));
                        if let Ok(value) = HeaderValue::try_from(warning) {
                            response.headers_mut().append(header::WARNING, value);
                        }
                    }
                    response
                }
                Err(error) => refuse(error),
            }
        }
        Ok(Answer::Text { code, text }) => respond(code, "text/plain; charset=utf-8", body::whole(text)),
        Ok(Answer::OpenApi(bytes)) => respond(200, OPENAPI_V2, body::whole(bytes)),
        Ok(Answer::Events(watch, shown)) => {
            respond(200, "application/json", body::events(*watch, shown, context.clone()))
        }
        Ok(Answer::Stream(response)) => response,
        Err(error) => refuse(error),
    };
    context.metrics.answered(counted, response.status().as_u16());
    Ok(response)
}

fn respond(code: u16, content_type: &'static str, body: Body) -> Response {
    let mut response = hyper::Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn refuse(error: StatusError) -> Response {
    let retry = error.details.as_ref().and_then(|details| details.retry_after_seconds);
    let code = error.code;
    let mut response = respond(code, "application/json", body::whole(format!("{}\n", body::status(error))));
    if let Some(seconds) = retry {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.unsigned_abs()));
    }
    response
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

async fn handle(
    context: &Arc<Context>,
    peer: &Peer,
    request: Request<Incoming>,
    counted: &mut &'static str,
) -> Result<Answer, StatusError> {
    let (head, body) = request.into_parts();
    let authorization = head.headers.get(header::AUTHORIZATION);
    let authorization = authorization.map(|value| value.to_str().unwrap_or_default());
    let bearer = authorization.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let identity = match context.enrollment.authenticate(bearer.trim()).await? {
        Some(identity) => identity,
        None => context.authenticator.identify(&context.registry, peer, authorization).await?,
    };
    context.enrollment.check_node(&identity).await?;
    let authorizer = context.registry.authorizer();
    let identity = auth::act_as(authorizer, identity, &head.headers)?;
    let path = head.uri.path();
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let Some(route) = route(path) else { return Ok(Answer::not_found()) };
    let Route::Resource(of) = route else {
        *counted = "path";
        let verb = head.method.as_str().to_lowercase();
        authorizer.authorize(&identity, &Attributes::Path { verb: &verb, path })?;
        return plain(context, &route, path, &head.method, text(&head.headers, &header::ACCEPT)).await;
    };
    if streams::is_relay(&of) {
        *counted = "relay";
        let request = Request::from_parts(head, body);
        return streams::open_relay(context, peer, &identity, &of, request).await.map(Answer::Stream);
    }
    if streams::is_tunnel(&of) {
        *counted = "tunnel";
        let request = Request::from_parts(head, body);
        return streams::open_tunnel(context, &identity, &of, request).await.map(Answer::Stream);
    }
    let verb = verb(&head.method, &of, &query).ok_or_else(|| StatusError::generic(405, ""))?;
    *counted = verb;
    access::admit(authorizer, &identity, verb, &of, &query, streams::enters(&of, path, &head.headers))?;
    if !discovery::is_served(&of.group, &of.version) {
        // Before it sends what nobody can patch, such as a review, kubectl asks for definitions of kinds. There are none.
        if verb == "list" && (&*of.group, &*of.version, &*of.plural) == DEFINITIONS {
            let accepted = negotiate::accept(text(&head.headers, &header::ACCEPT), false)?;
            return Ok(Answer::ok(discovery::no_definitions(), accepted));
        }
        return Ok(Answer::not_found());
    }
    if let Some((resource, part)) = kinds::find(&of.group, &of.version, &of.plural)
        .and_then(|resource| Some((resource, resource.subresource(&of.subresource)?)))
        .filter(|(_, part)| part.what == Part::Connect)
    {
        // A right in a namespace is none over what lies in no namespace, however the path is written.
        if resource.namespaced == of.namespace.is_empty() {
            return Err(StatusError::generic(404, ""));
        }
        if !part.verbs.contains(&verb) {
            return Err(StatusError::generic(405, ""));
        }
        let request = Request::from_parts(head, body);
        let asked = streams::Asked { context: context.clone(), who: identity, of, query, request };
        return streams::serve(asked).await.map(Answer::Stream);
    }
    let asked = Asked { context: context.clone(), who: identity, of, verb, query, headers: head.headers };
    asked.answer(body).await
}

async fn plain(
    context: &Context,
    route: &Route,
    path: &str,
    method: &Method,
    accept: &str,
) -> Result<Answer, StatusError> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(StatusError::generic(405, ""));
    }
    // A path that does not exist is that, whatever is accepted.
    let accepted = negotiate::accept(accept, true);
    if let (Route::Other, false) = (route, SERVED.iter().any(|root| path.starts_with(root))) {
        return Ok(Answer::not_found());
    }
    if path == "/openapi/v2" && accept.contains("proto-openapi.spec.v2") {
        return Ok(Answer::OpenApi(coracle_api::openapi::v2_protobuf(&openapi::v2())));
    }
    let accepted = accepted?;
    let aggregated = accepted.shape == Shape::Discovery;
    let whole = Accepted { shape: Shape::Whole, ..accepted };
    let found = match route {
        Route::Groups { core } if aggregated => {
            return Ok(Answer::ok(discovery::aggregated(*core), accepted));
        }
        Route::Groups { core: true } => Some(discovery::core_versions()),
        Route::Groups { core: false } => Some(discovery::group_list()),
        Route::Group { group } => discovery::group(group),
        Route::Version { group, version } => discovery::resource_list(group, version),
        Route::Other | Route::Resource(_) => match path.trim_end_matches('/') {
            "/openapi/v2" => Some(openapi::v2()),
            "/.well-known/openid-configuration" => Some(Tokens::configuration()),
            "/openid/v1/jwks" => Some(context.authenticator.tokens().key_set()),
            "/version" => Some(discovery::version()),
            "/metrics" => return Ok(Answer::Text { code: 200, text: context.metrics_text() }),
            "/healthz" | "/livez" | "/livez/ping" | "/healthz/ping" => {
                return Ok(Answer::Text { code: 200, text: "ok".into() });
            }
            "/readyz" | "/readyz/ping" => {
                // Ready is who reaches its storage.
                let ready = context.registry.storage().revision().await;
                return Ok(match ready {
                    Ok(_) => Answer::Text { code: 200, text: "ok".into() },
                    Err(error) => Answer::Text { code: 500, text: format!("[-]storage failed: {error}\n") },
                });
            }
            path => openapi::v3(path.strip_prefix("/openapi/v3").unwrap_or("none")),
        },
    };
    Ok(found.map_or_else(Answer::not_found, |object| Answer::ok(object, whole)))
}

/// A request on objects.
struct Asked {
    context: Arc<Context>,
    who: Identity,
    of: ResourcePath,
    verb: &'static str,
    query: Query,
    headers: HeaderMap,
}

impl Asked {
    async fn answer(self, body: Incoming) -> Result<Answer, StatusError> {
        let _place = self.context.in_flight.enter(self.verb)?;
        let of = &self.of;
        let missing = || StatusError::generic(404, "");
        if top::is_ours(of) {
            let accepted = negotiate::accept(text(&self.headers, &header::ACCEPT), false)?;
            let whole = Accepted { shape: Shape::Whole, ..accepted };
            let served = top::serve(&self.context, of, self.verb, &self.query).await?;
            return Ok(Answer::ok(served, whole));
        }
        let resource = kinds::find(&of.group, &of.version, &of.plural).ok_or_else(missing)?;
        if !of.namespace.is_empty() && !resource.namespaced {
            return Err(missing());
        }
        let part = match of.subresource.as_str() {
            "" => None,
            name => Some(resource.subresource(name).ok_or_else(missing)?),
        };
        self.allowed(resource, part)?;
        let accepted = negotiate::accept(text(&self.headers, &header::ACCEPT), false)?;
        let target = Target { resource, namespace: of.namespace.clone(), name: of.name.clone() };
        let include = IncludeObject::parse(self.query.get("includeObject")).unwrap_or_default();
        let shown = Shown { shape: accepted.shape, resource, include, headed: true };
        if self.verb == "watch" {
            let options = WatchOptions::parse(resource, &self.query)?;
            let watch = self.context.registry.watch(&target, options).await?;
            return Ok(Answer::Events(Box::new(watch), shown));
        }
        let served = self.serve(&target, part, accepted, body);
        match tokio::time::timeout(REQUEST, served).await {
            Ok(Ok(Answer::Object { code, object, warnings, accepted })) => {
                Ok(Answer::Object { code, object: shown.of(object), warnings, accepted })
            }
            Ok(answer) => answer,
            Err(_) => Err(StatusError::timeout("request did not complete within the allotted timeout", 0)),
        }
    }

    /// Whether the path has the method at all.
    fn allowed(&self, resource: &Resource, part: Option<&Subresource>) -> Result<(), StatusError> {
        let verbs = part.map_or(resource.verbs.names(), |part| part.verbs);
        let in_place = match self.verb {
            "create" if part.is_none() => self.of.name.is_empty(),
            "update" | "patch" | "delete" => !self.of.name.is_empty(),
            _ => true,
        };
        // What changes one object of a namespace names the namespace.
        let needs_namespace =
            resource.namespaced && self.of.namespace.is_empty() && !matches!(self.verb, "list" | "watch");
        if verbs.contains(&self.verb) && in_place && !needs_namespace {
            Ok(())
        } else {
            Err(StatusError::generic(405, ""))
        }
    }

    async fn serve(
        &self,
        target: &Target,
        part: Option<&'static Subresource>,
        accepted: Accepted,
        body: Incoming,
    ) -> Result<Answer, StatusError> {
        let registry = &self.context.registry;
        let resource = target.resource;
        let written = |code: u16, written: Written| Answer::Object {
            code,
            object: written.object,
            warnings: written.warnings,
            accepted,
        };
        let content_type = text(&self.headers, &header::CONTENT_TYPE);
        let media_type = negotiate::media_type(content_type);
        let agent = text(&self.headers, &header::USER_AGENT);
        let is_scale = part.is_some_and(|part| part.what == Part::Scale);
        Ok(match self.verb {
            "get" if is_scale => Answer::ok(registry.scale(target).await?, accepted),
            "get" => Answer::ok(registry.get(target).await?, accepted),
            "list" => {
                let options = ListOptions::parse(resource, &self.query)?;
                let listed = registry.list(target, &options).await?;
                Answer::ok(listed.into_object(target), accepted)
            }
            "create" => {
                let options = WriteOptions::parse(&self.query, "CreateOptions", agent, false)?;
                let kind = part.map_or(resource.kind, |part| part.kind);
                let object = negotiate::read(media_type, &body::read(body).await?, kind)?;
                let made = |object| Answer::Object { code: 201, object, warnings: Vec::new(), accepted };
                if part.is_some_and(|part| part.what == Part::Token) {
                    let tokens = self.context.authenticator.tokens();
                    return tokens::request(tokens, registry, &self.who, target, object).await.map(made);
                }
                if resource.verbs == Verbs::Create {
                    return reviews::answer(&self.context, &self.who, target, object).await.map(made);
                }
                if part.is_some_and(|part| part.what == Part::Binding) {
                    let bound = registry.bind(&self.who, target, &object.value, &options).await?;
                    return Ok(made(bound));
                }
                if resource.kind == CSR {
                    let enrollment = &self.context.enrollment;
                    return Ok(written(201, enrollment.create(&self.who, target, object, &options).await?));
                }
                if part.is_some_and(|part| part.what == Part::Eviction) {
                    let evicted = registry.evict(&self.who, target, &object.value, &options).await?;
                    return Ok(Answer::Object { code: 201, object: evicted, warnings: Vec::new(), accepted });
                }
                written(201, registry.create(&self.who, target, object, &options).await?)
            }
            "update" => {
                let options = WriteOptions::parse(&self.query, "UpdateOptions", agent, false)?;
                let object = negotiate::read(media_type, &body::read(body).await?, resource.kind)?;
                if is_scale {
                    let how = Rescale::Replace(object);
                    return Ok(written(200, registry.rescale(&self.who, target, &how, &options).await?));
                }
                written(200, registry.update(&self.who, target, part, object, &options).await?)
            }
            "patch" => {
                let how = PatchType::of(content_type).ok_or_else(StatusError::unsupported_patch_type)?;
                let applies = how == PatchType::Apply;
                let options = WriteOptions::parse(&self.query, "PatchOptions", agent, applies)?;
                let patch = negotiate::read_patch(how, &body::read(body).await?, resource.kind)?;
                if is_scale {
                    let how = Rescale::Patch(how, patch);
                    return Ok(written(200, registry.rescale(&self.who, target, &how, &options).await?));
                }
                let (made, patched) = registry.patch(&self.who, target, part, (how, patch), &options).await?;
                written(if made { 201 } else { 200 }, patched)
            }
            "delete" => {
                let options = self.delete_options(media_type, body).await?;
                written(200, registry.delete(&self.who, target, &options).await?)
            }
            "deletecollection" => {
                let options = self.delete_options(media_type, body).await?;
                let list = ListOptions::parse(resource, &self.query)?;
                Answer::ok(registry.delete_collection(&self.who, target, &list, &options).await?, accepted)
            }
            _ => return Err(StatusError::generic(405, "")),
        })
    }

    async fn delete_options(&self, media_type: &str, body: Incoming) -> Result<DeleteOptions, StatusError> {
        let body = body::read(body).await?;
        let object = match body.len() {
            0 => Value::Null,
            _ => negotiate::read(media_type, &body, "DeleteOptions")?.value,
        };
        DeleteOptions::parse(&self.query, &object)
    }
}
